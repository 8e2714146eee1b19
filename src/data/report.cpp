#include "llava/data/report.h"

#include "in_order.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

namespace llava::data {
namespace {

/// Marks as training counts them: a sample's one picture has one mark in a turn, however often it
/// is written there (text::Placement::first).
std::int64_t count_marks(const Record& record) {
  std::int64_t marks = 0;
  for (const auto& message : record.conversation.messages) {
    std::int64_t own = 0;
    for (auto at = message.text.find(text::kImageMark); at != std::string::npos;
         at = message.text.find(text::kImageMark, at + 1))
      ++own;
    marks += record.images.size() == 1 ? std::min<std::int64_t>(own, 1) : own;
  }
  return marks;
}

/// Throws unless the text has a mark for each picture. The encoder says the same of samples with
/// pictures; in one without "<image>" is plain text, as the reference trains on it.
void expect_matching_marks(const Record& record) {
  if (!record.video.empty() || record.images.empty()) return;
  const auto pictures = static_cast<std::int64_t>(record.images.size());
  const auto marks = count_marks(record);
  expect(marks == pictures, Fault::data, record.where, ": the text has ", marks, " ",
         text::kImageMark, " marks for ", pictures, " pictures");
}

void expect_readable_pictures(const Record& record, const ReportConfig& config) {
  for (const auto& name : record.images) {
    const auto path = image_path(record, name, config.media);
    try {
      if (config.decode) {
        media::load_image(path, config.media.image);
      } else {
        read_image_header(path, config.media.image);
      }
    } catch (const Error& error) {
      fail(error.fault(), record.where, ": ", error.what());
    }
  }
  if (record.video.empty()) return;
  const auto path = video_path(record, config.media);
  expect(std::filesystem::exists(path), Fault::data, record.where, ": ", path,
         ": there is no such video");
}

/// Throws what is wrong with a sample.
void check_sample(const Record& record, const input::Encoder* encoder, const ReportConfig& config) {
  expect_matching_marks(record);
  if (config.decode || !encoder) expect_readable_pictures(record, config);
  if (!encoder) return;
  const auto example = measure_example(record, *encoder, config.media);
  const auto tokens = example.num_tokens();
  expect(config.max_tokens == 0 || tokens <= config.max_tokens, Fault::data, record.where, ": has ",
         tokens, " tokens, more than model_max_length ", config.max_tokens);
  expect(input::num_learned(example) > 0, Fault::data, record.where,
         ": nothing is learned from it with template ", text::template_name(encoder->chat()));
}

/// What stats() needs of one sample.
struct Counts {
  bool broken = false;
  std::string source;
  std::int64_t images = 0, videos = 0, turns = 0, words = 0;
  std::int64_t tokens = 0, picture_tokens = 0, learned = 0, tiles = 0;
};

/// The first part of the first picture's path, which tells collections apart.
std::string source_of(const Record& record) {
  const std::string& name = !record.images.empty() ? record.images[0] : record.video;
  if (name.empty()) return "(text only)";
  const auto slash = name.find('/');
  return slash == name.npos || slash == 0 ? "(no folder)" : name.substr(0, slash);
}

Counts count(const Records& records, std::int64_t index, const input::Encoder* encoder,
             const ReportConfig& config) {
  Counts counts;
  try {
    const auto record = records.at(index);
    counts.source = source_of(record);
    counts.images = static_cast<std::int64_t>(record.images.size());
    counts.videos = !record.video.empty();
    counts.turns = static_cast<std::int64_t>(record.conversation.messages.size());
    for (const auto& message : record.conversation.messages)
      counts.words += count_words(message.text);
    if (!encoder) return counts;
    const auto example = measure_example(record, *encoder, config.media);
    counts.tokens = example.num_tokens();
    counts.learned = input::num_learned(example);
    for (const auto& picture : example.pictures) {
      counts.picture_tokens += picture.rows;
      counts.tiles += picture.tiles();
    }
  } catch (const Error&) {  // counted; `data check` says what is wrong with it
    counts = {};
    counts.broken = true;
  }
  return counts;
}

/// Mean and quantiles of a list, which is sorted by this.
Json spread(std::vector<std::int32_t>& values) {
  if (values.empty()) return nullptr;
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const auto value : values) sum += value;
  const auto quantile = [&](double share) {
    return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return {{"mean", sum / static_cast<double>(values.size())},
          {"min", values.front()},
          {"median", quantile(0.5)},
          {"p95", quantile(0.95)},
          {"max", values.back()}};
}

/// Control characters other than newline as "\x1b", so that a text cannot steer the terminal.
std::string printable(std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if ((c < 0x20 && c != '\n') || c == 0x7F || c1) {
      const auto code = c1 ? static_cast<unsigned char>(text[++i]) : c;
      out += std::string("\\x") + kDigits[code >> 4] + kDigits[code & 15];
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

CheckResult check(const Records& records, const input::Encoder* encoder, const ReportConfig& config,
                  const std::function<void(const Problem&)>& on_bad,
                  const std::function<void(std::int64_t index)>& on_good) {
  CheckResult result;
  const auto work = [&](std::int64_t index) -> std::optional<Problem> {
    Problem problem;
    try {
      const auto record = records.at(index);
      problem.id = record.id;
      check_sample(record, encoder, config);
      return std::nullopt;
    } catch (const Error& error) {  // told to on_bad
      problem.why = error.what();
    }
    const auto place = records.place(index);
    problem.file = place.file;
    problem.line = place.line;
    if (problem.id.empty()) problem.id = sample_id(records.json(index), place);
    return problem;
  };
  in_order(records.size(), config.threads, work,
           [&](std::int64_t index, const std::optional<Problem>& problem) {
             ++result.samples;
             if (problem) {
               on_bad(*problem);
             } else {
               ++result.good;
               on_good(index);
             }
           });
  return result;
}

Json stats(const Records& records, const input::Encoder* encoder, const ReportConfig& config) {
  Counts sum;
  std::int64_t broken = 0, with_images = 0, several = 0, text_only = 0;
  std::map<std::string, std::int64_t> sources;
  std::vector<std::int32_t> turns, tokens;
  in_order(
      records.size(), config.threads,
      [&](std::int64_t index) { return count(records, index, encoder, config); },
      [&](std::int64_t, const Counts& one) {
        broken += one.broken;
        if (one.broken) return;
        with_images += one.images > 0;
        several += one.images > 1;
        text_only += one.images + one.videos == 0;
        ++sources[one.source];
        turns.push_back(static_cast<std::int32_t>(one.turns));
        if (encoder) tokens.push_back(static_cast<std::int32_t>(one.tokens));
        sum.images += one.images;
        sum.videos += one.videos;
        sum.turns += one.turns;
        sum.words += one.words;
        sum.tokens += one.tokens;
        sum.picture_tokens += one.picture_tokens;
        sum.learned += one.learned;
        sum.tiles += one.tiles;
      });
  Json all{{"samples", records.size()}, {"broken", broken},     {"with_images", with_images},
           {"several_images", several}, {"videos", sum.videos}, {"text_only", text_only},
           {"images", sum.images},      {"turns", sum.turns},   {"words", sum.words}};
  all["turns_per_sample"] = spread(turns);
  if (encoder) {
    all["template"] = text::template_name(encoder->chat());
    all["tokens"] = sum.tokens;
    all["image_tokens"] = sum.picture_tokens;
    all["learned_tokens"] = sum.learned;
    all["tiles"] = sum.tiles;
    all["tokens_per_sample"] = spread(tokens);
  }
  all["sources"] = Json::object();
  for (const auto& [name, samples] : sources) all["sources"][name] = samples;
  return all;
}

Json show(const Records& records, std::int64_t index, const input::Encoder& encoder,
          const ReportConfig& config) {
  expect(index >= 0 && index < records.size(), Fault::usage, "--index ", index,
         ": the set has samples 0 to ", records.size() - 1);
  const auto record = records.at(index);
  const auto example = measure_example(record, encoder, config.media);
  Json shown{{"id", record.id}, {"ids", example.ids}, {"labels", example.labels}};
  Json pieces = Json::array(), images = Json::array();
  for (const auto id : example.ids) pieces.push_back(encoder.tokenizer().piece(id));
  for (std::size_t i = 0; i < example.pictures.size(); ++i) {
    const auto& picture = example.pictures[i];
    images.push_back({{"file", record.video.empty() ? record.images[i] : record.video},
                      {"width", picture.shape.image_width},
                      {"height", picture.shape.image_height},
                      {"tiles", picture.tiles()},
                      {"tokens", picture.rows}});
  }
  shown["pieces"] = std::move(pieces);
  shown["images"] = std::move(images);
  return shown;
}

std::string show_text(const Json& shown, const input::Encoder& encoder, bool color) {
  const auto ids = shown["ids"].get<std::vector<std::int64_t>>();
  const auto labels = shown["labels"].get<std::vector<std::int64_t>>();
  std::int64_t learned = 0, pictures = 0;
  std::string text;
  for (std::size_t begin = 0, end = 0; begin < ids.size(); begin = end) {
    // A run of tokens alike, so that characters of several tokens stay whole.
    const bool is_learned = labels[begin] != input::kIgnore;
    const bool is_picture = ids[begin] == input::kImageToken;
    for (end = begin; end < ids.size() && (labels[end] != input::kIgnore) == is_learned &&
                      (ids[end] == input::kImageToken) == is_picture;)
      ++end;
    if (is_picture) {
      for (auto i = begin; i < end; ++i) {
        const auto& image = shown["images"][static_cast<std::size_t>(pictures++)];
        text += "[" + printable(image["file"].get<std::string>()) + ": " + image["tokens"].dump() +
                " tokens]";
      }
      continue;
    }
    const auto run =
        printable(encoder.tokenizer().decode({ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                              ids.begin() + static_cast<std::ptrdiff_t>(end)},
                                             /*skip_special=*/false));
    if (is_learned) learned += static_cast<std::int64_t>(end - begin);
    text += !is_learned ? run : color ? "\x1b[32m" + run + "\x1b[0m" : "«" + run + "»";
  }
  std::int64_t tokens = static_cast<std::int64_t>(ids.size());
  for (const auto& image : shown["images"]) tokens += image["tokens"].get<std::int64_t>() - 1;
  return "sample \"" + printable(shown["id"].get<std::string>()) + "\": " + std::to_string(tokens) +
         " tokens, " + std::to_string(learned) + " learned\n" + text + "\n";
}

}  // namespace llava::data
