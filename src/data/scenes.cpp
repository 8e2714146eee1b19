#include "llava/data/scenes.h"

#include "llava/base/check.h"
#include "llava/base/config.h"
#include "llava/base/files.h"
#include "llava/base/workers.h"
#include "llava/media/encode.h"
#include "llava/text/conversation.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <thread>

namespace llava::data {
namespace {

/// SplitMix64: the whole state is one number, so every picture has its own stream.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int below(int count) { return static_cast<int>(next() % static_cast<std::uint64_t>(count)); }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(next() >> 11) * 0x1.0p-53;
  }
  bool coin() { return (next() & 1) != 0; }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i)
      std::swap(items[i - 1], items[static_cast<std::size_t>(below(static_cast<int>(i)))]);
  }

 private:
  std::uint64_t state_;
};

std::uint64_t mixed(std::uint64_t a, std::uint64_t b) {
  return Random(a ^ (b * 0xd1342543de82ef95ull)).next();
}

constexpr std::array<const char*, 3> kShapes{"square", "ring", "cross"};
constexpr std::array<const char*, 5> kColors{"red", "green", "blue", "yellow", "purple"};
constexpr std::array<const char*, 4> kCells{"top left", "top right", "bottom left", "bottom right"};
constexpr std::array<const char*, 4> kNumbers{"zero", "one", "two", "three"};
constexpr std::array<std::array<int, 3>, 5> kRgb{
    {{215, 40, 40}, {40, 160, 60}, {45, 80, 215}, {235, 205, 40}, {140, 50, 170}}};

const char* name(Shape shape) { return kShapes[static_cast<std::size_t>(shape)]; }
const char* name(Color color) { return kColors[static_cast<std::size_t>(color)]; }
const char* size_name(const Thing& thing) { return thing.large ? "large" : "small"; }

std::string described(const Thing& thing) {
  return std::string(size_name(thing)) + " " + name(thing.color) + " " + name(thing.shape);
}
std::string referred(const Thing& thing) {
  return std::string(name(thing.color)) + " " + name(thing.shape);
}

template <std::size_t N>
std::array<int, N> permutation(Random& random) {
  std::array<int, N> order{};
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = N; i > 1; --i)
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<int>(i)))]);
  return order;
}

Scene random_scene(Random& random, int count) {
  const auto shapes = permutation<3>(random);
  const auto colors = permutation<5>(random);
  const auto cells = permutation<4>(random);
  Scene scene;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
    scene.things.push_back(
        {static_cast<Shape>(shapes[i]), static_cast<Color>(colors[i]), random.coin(), cells[i]});
  std::sort(scene.things.begin(), scene.things.end(),
            [](const Thing& a, const Thing& b) { return a.cell < b.cell; });
  return scene;
}

Scene scene_of_split(Random& random, int count, bool held_out) {
  for (;;) {
    auto scene = random_scene(random, count);
    if (is_held_out(scene) == held_out) return scene;
  }
}

// ── Pictures ─────────────────────────────────────────────────────────────────────────────────────

struct Placed {
  double x = 0, y = 0, radius = 0;  // in picture widths
  double cosine = 1, sine = 0;      // of its turn
};

bool covers(Shape shape, const Placed& at, double x, double y) {
  const double dx = x - at.x, dy = y - at.y;
  const double across = std::abs(dx * at.cosine + dy * at.sine) / at.radius;
  const double down = std::abs(dy * at.cosine - dx * at.sine) / at.radius;
  const double distance = std::sqrt(across * across + down * down);
  switch (shape) {
    case Shape::square: return std::max(across, down) <= 0.89;
    case Shape::ring: return distance <= 1 && distance >= 0.55;
    case Shape::cross: return std::max(across, down) <= 1 && std::min(across, down) <= 0.3;
  }
  return false;
}

constexpr int kSamples = 3;  // sub-pixels each way, for smooth edges

double coverage(Shape shape, const Placed& at, int column, int row, double size) {
  const double reach = 1.45 * at.radius;  // a turned cross's corner, half a pixel beyond
  if (std::abs((column + 0.5) / size - at.x) > reach + 0.5 / size ||
      std::abs((row + 0.5) / size - at.y) > reach + 0.5 / size)
    return 0;
  int inside = 0;
  for (int i = 0; i < kSamples; ++i)
    for (int j = 0; j < kSamples; ++j)
      inside += covers(shape, at, (column + (j + 0.5) / kSamples) / size,
                       (row + (i + 0.5) / kSamples) / size);
  return static_cast<double>(inside) / (kSamples * kSamples);
}

/// A soft background of one hue-less tone with a slope across it, never close to a thing's colour.
struct Background {
  std::array<double, 3> base{}, slope_x{}, slope_y{};
  double noise = 0;
};

Background random_background(Random& random) {
  Background background;
  const double tone = random.coin() ? random.uniform(20, 90) : random.uniform(165, 235);
  for (std::size_t c = 0; c < 3; ++c) {
    background.base[c] = tone + random.uniform(-12, 12);
    background.slope_x[c] = random.uniform(-20, 20);
    background.slope_y[c] = random.uniform(-20, 20);
  }
  background.noise = random.uniform(4, 14);
  return background;
}

// ── Files ────────────────────────────────────────────────────────────────────────────────────────

Json turn(const char* from, const std::string& value) { return {{"from", from}, {"value", value}}; }

/// Instructions of the reference's Stage 1 (brief descriptions), which the plain template drops.
constexpr std::array<const char*, 3> kBrief{"Describe the image concisely.",
                                            "Provide a brief description of the given image.",
                                            "Give a short and clear explanation of the image."};

Json caption_sample(const std::string& id, const std::string& image, const std::string& text,
                    Random& random) {
  const std::string words = kBrief[static_cast<std::size_t>(random.below(3))];
  return {{"id", id},
          {"image", image},
          {"conversations",
           {turn("human", random.coin() ? words + "\n<image>" : "<image>\n" + words),
            turn("gpt", text)}}};
}

Json talk(const std::string& id, const std::vector<Question>& asked) {
  Json turns = Json::array();
  for (const auto& item : asked) {
    turns.push_back(turn("human", item.question));
    turns.push_back(turn("gpt", item.answer));
  }
  return {{"id", id}, {"conversations", std::move(turns)}};
}

/// The sign that stands for a thing at its place in pictures made of signs, one of 120, in UTF-8.
/// The signs mean nothing outside of these texts, so that a tokenizer has each as one piece.
std::string sign_of(const Thing& thing) {
  const int number = ((static_cast<int>(thing.shape) * 5 + static_cast<int>(thing.color)) * 2 +
                      (thing.large ? 1 : 0)) *
                         4 +
                     thing.cell;
  const int code = 0x4e00 + number;  // three bytes, as all from U+0800 to U+FFFF
  return {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3f)),
          static_cast<char>(0x80 | (code & 0x3f))};
}

/// A scene as a language model without eyes can be shown it: six rows of six signs, as a tower's
/// patches will say it. Each sign says all about its thing, as a patch does: pictures in plain
/// words teach as much only to a model that has first learned which words belong together.
std::string picture_in_signs(const Scene& scene, Random& random) {
  std::array<std::string, 36> signs;
  signs.fill(".");
  for (const auto& thing : scene.things) {
    const int first = thing.cell / 2 * 18 + thing.cell % 2 * 3;
    const auto places = permutation<9>(random);
    const auto shown = std::size_t{3} + static_cast<std::size_t>(random.below(7));
    for (std::size_t i = 0; i < shown; ++i)
      signs.at(static_cast<unsigned>(first + places[i] / 3 * 6 + places[i] % 3)) = sign_of(thing);
  }
  std::string text;
  for (const auto& sign : signs) text += (text.empty() ? "" : " ") + sign;
  return text;
}

/// A conversation as a model with LLaVA's template reads it, a line for each answer.
std::string rendered(const std::vector<Question>& asked) {
  text::Conversation conversation;
  for (const auto& item : asked) {
    conversation.messages.push_back({text::Role::user, item.question});
    conversation.messages.push_back({text::Role::assistant, item.answer});
  }
  auto text = text::render(text::find_template("vicuna_v1"), conversation).text;
  const std::string_view end = "</s>";
  for (auto at = text.find(end); at != text.npos; at = text.find(end, at))
    text.replace(at, end.size(), "\n");
  return text;
}

/// A picture to be drawn: JPEG, every fourth a PNG.
struct Picture {
  std::string file;
  Scene scene;
  std::uint64_t seed = 0;
};

Picture picture_of(const std::string& stem, Scene scene, std::uint64_t seed) {
  return {stem + (seed % 4 == 0 ? ".png" : ".jpg"), std::move(scene), seed};
}

/// Draws on every core: a picture follows from its own seed alone.
void save_pictures(const std::string& folder, const std::vector<Picture>& pictures,
                   std::int64_t size) {
  std::atomic<std::size_t> next{0};
  WorkerGroup workers;
  const auto work = [&] {
    for (std::size_t i; (i = next++) < pictures.size();) {
      const auto& picture = pictures[i];
      const auto image = draw(picture.scene, size, picture.seed);
      write_file(
          folder + "/" + picture.file,
          picture.file.ends_with(".png") ? media::encode_png(image) : media::encode_jpeg(image),
          /*durable=*/false);
    }
  };
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    workers.start(work);
  workers.join();
}

std::string numbered(const char* prefix, std::int64_t i) {
  auto digits = std::to_string(i);
  return prefix + std::string(5 - std::min<std::size_t>(5, digits.size()), '0') + digits;
}

/// The kinds in the order that reports show them.
constexpr std::array<const char*, 7> kKinds{"color", "shape",      "position", "size",
                                            "count", "comparison", "yes/no"};

}  // namespace

std::string caption(const Scene& scene) {
  std::string text;
  for (std::size_t i = 0; i < scene.things.size(); ++i) {
    if (i > 0) text += i + 1 == scene.things.size() ? " and " : ", ";
    const auto& thing = scene.things[i];
    text += "a " + described(thing) + " at the " + kCells[static_cast<std::size_t>(thing.cell)];
  }
  text[0] = 'A';
  return text + ".";
}

bool is_held_out(const Scene& scene) {
  std::uint64_t key = 0;
  for (const auto& thing : scene.things)
    key = mixed(key,
                static_cast<std::uint64_t>(thing.cell * 100 + static_cast<int>(thing.shape) * 20 +
                                           static_cast<int>(thing.color) * 2 + thing.large) +
                    1);
  return key % 8 == 0;
}

media::Image draw(const Scene& scene, std::int64_t size, std::uint64_t seed) {
  Random random(seed);
  const auto background = random_background(random);
  std::vector<Placed> places;
  std::vector<std::array<double, 3>> colors;
  for (const auto& thing : scene.things) {
    Placed at;
    at.x = (thing.cell % 2 == 0 ? 0.26 : 0.74) + random.uniform(-0.03, 0.03);
    at.y = (thing.cell < 2 ? 0.26 : 0.74) + random.uniform(-0.03, 0.03);
    at.radius = thing.large ? random.uniform(0.195, 0.215) : random.uniform(0.125, 0.140);
    const double turn = random.uniform(-0.12, 0.12);  // radians
    at.cosine = std::cos(turn);
    at.sine = std::sin(turn);
    places.push_back(at);
    std::array<double, 3> color{};
    for (std::size_t c = 0; c < 3; ++c)
      color[c] = kRgb[static_cast<std::size_t>(thing.color)][c] + random.uniform(-14, 14);
    colors.push_back(color);
  }
  media::Image image{size, size,
                     std::vector<std::uint8_t>(static_cast<std::size_t>(3 * size * size))};
  auto* out = image.rgb.data();
  const double width = static_cast<double>(size);
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      std::array<double, 3> pixel{};
      for (std::size_t c = 0; c < 3; ++c)
        pixel[c] = background.base[c] + background.slope_x[c] * (column / width - 0.5) +
                   background.slope_y[c] * (row / width - 0.5);
      for (std::size_t i = 0; i < places.size(); ++i) {
        const double share = coverage(scene.things[i].shape, places[i], column, row, width);
        for (std::size_t c = 0; c < 3; ++c) pixel[c] += share * (colors[i][c] - pixel[c]);
      }
      for (std::size_t c = 0; c < 3; ++c) {
        const double noisy = pixel[c] + random.uniform(-background.noise, background.noise);
        *out++ = static_cast<std::uint8_t>(std::clamp(std::lround(noisy), 0l, 255l));
      }
    }
  }
  return image;
}

std::vector<Question> questions(const Scene& scene, std::uint64_t seed) {
  Random random(seed);
  std::vector<Question> all;
  const auto& things = scene.things;
  for (const auto& thing : things) {
    all.push_back(
        {"color", std::string("What color is the ") + name(thing.shape) + "?", name(thing.color)});
    all.push_back(
        {"shape", std::string("What shape is ") + name(thing.color) + "?", name(thing.shape)});
    all.push_back({"position", "Where is the " + referred(thing) + "?",
                   kCells[static_cast<std::size_t>(thing.cell)]});
    all.push_back({"size", "Is the " + referred(thing) + " small or large?", size_name(thing)});
    all.push_back({"yes/no", "Is there a " + referred(thing) + "?", "yes"});
    // As often a thing that is not there, one of its two words true.
    Thing other = thing;
    const auto is_there = [&] {
      return std::any_of(things.begin(), things.end(), [&](const Thing& t) {
        return t.shape == other.shape && t.color == other.color;
      });
    };
    do {
      other = thing;
      if (random.coin()) {
        other.shape = static_cast<Shape>(random.below(3));
      } else {
        other.color = static_cast<Color>(random.below(5));
      }
    } while (is_there());
    all.push_back({"yes/no", "Is there a " + referred(other) + "?", "no"});
  }
  all.push_back({"count", "How many shapes are there?", kNumbers[things.size()]});
  for (std::size_t i = 0; i < things.size(); ++i) {
    for (std::size_t j = i + 1; j < things.size(); ++j) {
      if (things[i].large == things[j].large) continue;
      const bool swap = random.coin();
      const auto& first = things[swap ? j : i];
      const auto& second = things[swap ? i : j];
      all.push_back({"comparison",
                     std::string("Which is larger, the ") + name(first.shape) + " or the " +
                         name(second.shape) + "?",
                     name(first.large ? first.shape : second.shape)});
    }
  }
  return all;
}

void make_scenes(const std::string& folder, const ScenesConfig& config) {
  expect(config.image_size >= 28 && config.image_size <= 1024, Fault::usage,
         "image_size: expected 28 to 1024, found ", config.image_size);
  expect(config.num_turns >= 1, Fault::usage, "num_turns: expected 1 or more, found ",
         config.num_turns);
  make_folder(folder + "/images");
  const auto stream = [&](std::uint64_t which) {
    return Random(mixed(static_cast<std::uint64_t>(config.seed), which));
  };
  const auto save = [&](const char* file, const Json& json) {
    write_file(folder + "/" + file, json_text(json));
  };
  std::string corpus;
  std::vector<Picture> pictures;
  const auto add_picture = [&](const std::string& stem, const Scene& scene, std::uint64_t seed) {
    pictures.push_back(picture_of(stem, scene, seed));
    return pictures.back().file;
  };

  // Training pictures of one thing, then of one to three, with captions and conversations.
  Json single = Json::array(), captions = Json::array(), talks = Json::array();
  auto random = stream(1);
  for (std::int64_t i = 0; i < config.num_single; ++i) {
    const auto scene = scene_of_split(random, 1, false);
    const auto id = numbered("single_", i);
    const auto image = add_picture(id, scene, random.next());
    single.push_back(caption_sample(id, image, caption(scene), random));
  }
  random = stream(2);
  for (std::int64_t i = 0; i < config.num_train; ++i) {
    const auto scene = scene_of_split(random, 1 + random.below(3), false);
    const auto id = numbered("scene_", i);
    const auto image = add_picture(id, scene, random.next());
    captions.push_back(caption_sample(id, image, caption(scene), random));
    auto asked = questions(scene, random.next());
    random.shuffle(asked);
    asked.resize(std::min(asked.size(), static_cast<std::size_t>(config.num_turns)));
    corpus += caption(scene) + "\n" + rendered(asked) + "\n";
    asked.front().question = "<image>\n" + asked.front().question;
    Json sample = talk(id, asked);
    sample["image"] = image;
    talks.push_back(std::move(sample));
  }
  // The control: every caption on the next but 16th picture.
  Json shuffled = captions;
  for (std::size_t i = 0; i < captions.size(); ++i)
    shuffled[i]["image"] = captions[(i + 17) % captions.size()]["image"];
  save("single.json", single);
  save("captions.json", captions);
  save("shuffled.json", shuffled);
  save("talk.json", talks);

  // Conversations without pictures: signs stand in for one, so that answers follow.
  Json texts = Json::array();
  random = stream(3);
  for (std::int64_t i = 0; i < config.num_texts; ++i) {
    const auto scene = scene_of_split(random, 1 + random.below(3), false);
    auto asked = questions(scene, random.next());
    asked.push_back({"caption", kBrief[static_cast<std::size_t>(random.below(3))], caption(scene)});
    random.shuffle(asked);
    asked.resize(std::min(asked.size(), static_cast<std::size_t>(config.num_turns)));
    asked.front().question = picture_in_signs(scene, random) + "\n" + asked.front().question;
    if (i % 15 == 0) corpus += rendered(asked) + "\n";
    texts.push_back(talk(numbered("text_", i), asked));
  }
  save("text.json", texts);

  // Held out: scenes that no training file has.
  Json tests = Json::array();
  random = stream(4);
  for (std::int64_t i = 0; i < config.num_captions_test; ++i) {
    const auto scene = scene_of_split(random, 1 + random.below(3), true);
    const auto id = numbered("test_", i);
    const auto image = add_picture(id, scene, random.next());
    tests.push_back(caption_sample(id, image, caption(scene), random));
  }
  save("captions_test.json", tests);
  const std::string blank = "blank.png";
  media::Image gray{config.image_size, config.image_size, {}};
  gray.rgb.assign(static_cast<std::size_t>(3 * config.image_size * config.image_size), 128);
  write_file(folder + "/images/" + blank, media::encode_png(gray));
  std::string lines, blank_lines;
  random = stream(5);
  for (std::int64_t i = 0; i < config.num_questions; ++i) {
    const std::string kind = kKinds[static_cast<std::size_t>(i) % kKinds.size()];
    std::vector<Question> fitting;
    Scene scene;
    while (fitting.empty()) {
      scene = scene_of_split(random, 1 + random.below(3), true);
      for (const auto& item : questions(scene, random.next()))
        if (item.kind == kind) fitting.push_back(item);
    }
    const auto& item =
        fitting[static_cast<std::size_t>(random.below(static_cast<int>(fitting.size())))];
    const auto id = numbered("question_", i);
    const auto image = add_picture(id, scene, random.next());
    Json line{{"question_id", i},
              {"image", image},
              {"text", item.question},
              {"kind", item.kind},
              {"answer", item.answer}};
    lines += line.dump() + "\n";
    line["image"] = blank;
    blank_lines += line.dump() + "\n";
  }
  write_file(folder + "/blank_questions.jsonl", blank_lines);
  write_file(folder + "/questions.jsonl", lines);
  write_file(folder + "/corpus.txt", corpus);
  save_pictures(folder + "/images", pictures, config.image_size);
}

}  // namespace llava::data
