#include "llava/input/encoder.h"

#include "llava/base/check.h"

#include <algorithm>

namespace llava::input {
namespace {

using text::Range;

constexpr std::string_view kImageStart = "<im_start>", kImageEnd = "<im_end>";

/// Stands for what came before a text that goes on from it: a character that no piece joins to the
/// next one, so that the text is tokenized as it would be there, without a dummy prefix.
constexpr std::string_view kContinues = "\n";

bool is_video(const Picture& picture) { return picture.frames > 0; }

/// Where the marks of `pictures` stand in a text, in order. A text without pictures has none.
std::vector<Range> find_marks(std::string_view text, const std::vector<Picture>& pictures) {
  std::vector<Range> marks;
  if (pictures.empty()) return marks;
  const bool videos = std::any_of(pictures.begin(), pictures.end(), is_video);
  for (std::size_t at = text.find('<'); at != text.npos; at = text.find('<', at + 1)) {
    for (const auto mark : {text::kImageMark, kVideoMark})
      if (text.substr(at, mark.size()) == mark && (videos || mark != kVideoMark))
        marks.push_back({at, at + mark.size()});
  }
  expect(marks.size() == pictures.size(), Fault::data, "the text has ", marks.size(), " ",
         text::kImageMark, " marks but ", pictures.size(),
         " pictures were given; give one picture for each mark");
  return marks;
}

/// The parts of `ranges` inside [begin, end) of a text, as they stand in a chunk that holds those
/// bytes after `shift` others.
std::vector<Range> clipped(const std::vector<Range>& ranges, std::size_t begin, std::size_t end,
                           std::size_t shift) {
  std::vector<Range> inside;
  for (const auto& range : ranges) {
    const auto from = std::max(range.begin, begin), to = std::min(range.end, end);
    if (from < to) inside.push_back({from - begin + shift, to - begin + shift});
  }
  return inside;
}

}  // namespace

Encoder::Encoder(text::Tokenizer tokenizer, const text::Template& chat, EncoderConfig config)
    : tokenizer_(std::move(tokenizer)), chat_(&chat), config_(std::move(config)) {
  if (!config_.image_start_end) return;
  for (const auto token : {kImageStart, kImageEnd})
    expect(tokenizer_.special(token).has_value(), Fault::data, "the model uses ", token,
           " (mm_use_im_start_end) but its tokenizer has no such token; is added_tokens.json "
           "missing?");
}

/// Each chunk between marks is tokenized as a text of its own, as the reference does it.
/// Source: haotian-liu/LLaVA 1.2.2, mm_utils.py, tokenizer_image_token.
Example Encoder::tokens_of(const text::Prompt& prompt, std::vector<Picture> pictures,
                           bool begins) const {
  Example example;
  const auto add = [&](std::int64_t id, bool learned) {
    example.ids.push_back(id);
    example.labels.push_back(learned ? id : kIgnore);
  };
  const auto marks = find_marks(prompt.text, pictures);
  const bool bos = begins && tokenizer_.adds_bos() && tokenizer_.bos();
  if (bos) add(*tokenizer_.bos(), false);

  std::size_t begin = 0;
  for (std::size_t i = 0; i <= marks.size(); ++i) {
    const bool last = i == marks.size();
    const std::size_t end = last ? prompt.text.size() : marks[i].begin;
    const bool continues = i == 0 && !begins;
    const std::string_view before = continues                          ? kContinues
                                    : config_.image_start_end && i > 0 ? kImageEnd
                                                                       : "";
    const std::string_view after = config_.image_start_end && !last ? kImageStart : "";
    std::string chunk(before);
    chunk.append(prompt.text, begin, end - begin).append(after);
    const auto learned = clipped(prompt.learned, begin, end, before.size());
    const auto literal = config_.parse_user_specials
                             ? std::vector<Range>{}
                             : clipped(prompt.literal, begin, end, before.size());
    const auto tokens = tokenizer_.encode(chunk, literal);
    for (std::size_t k = 0; k < tokens.size(); ++k) {
      const bool context = continues && tokens[k].bytes.end <= before.size();
      // A template that writes BOS itself does not get a second one.
      const bool repeats = bos && i == 0 && k == 0 && tokens[k].id == *tokenizer_.bos();
      if (!context && !repeats) add(tokens[k].id, text::is_learned(tokens[k].bytes, learned));
    }
    if (last) break;
    add(kImageToken, false);
    begin = marks[i].end;
  }
  example.pictures = std::move(pictures);
  return example;
}

Example Encoder::encode(const text::Conversation& conversation,
                        std::vector<Picture> pictures) const {
  return tokens_of(text::render(*chat_, conversation), std::move(pictures), true);
}

Example Encoder::encode_prompt(const text::Conversation& conversation,
                               std::vector<Picture> pictures, std::size_t turn_from) const {
  auto prompt = text::render_open(*chat_, conversation, turn_from);
  prompt.learned.clear();
  return tokens_of(prompt, std::move(pictures), turn_from == 0);
}

Example Encoder::encode_raw(const std::string& text, std::vector<Picture> pictures) const {
  return tokens_of({.text = text, .learned = {}, .literal = {}}, std::move(pictures), true);
}

media::TilingConfig Encoder::tiling(std::optional<media::Aspect> aspect) const {
  auto tiling = config_.tiling;
  tiling.aspect = aspect.value_or(tiling.aspect);
  return tiling;
}

Picture Encoder::measure(std::int64_t width, std::int64_t height,
                         std::optional<media::Aspect> aspect) const {
  Picture picture;
  picture.shape = media::tile_shape(width, height, tiling(aspect));
  picture.rows = media::image_rows(picture.shape, config_.merge);
  picture.side = config_.tiling.tile;
  return picture;
}

Picture Encoder::picture(const media::Image& image, std::optional<media::Aspect> aspect) const {
  auto tiles = media::make_tiles(image, tiling(aspect));
  Picture picture;
  picture.shape = tiles.shape;
  picture.rows = media::image_rows(tiles.shape, config_.merge);
  picture.side = tiles.side;
  picture.pixels = std::move(tiles.pixels);
  return picture;
}

/// A frame is preprocessed as the tower's processor does it, whatever the images' aspect mode.
/// Source: LLaVA-VL/LLaVA-NeXT, train.py, the "video" branch.
Picture Encoder::measure_video(std::int64_t width, std::int64_t height, std::int64_t frames) const {
  expect(frames > 0, Fault::data, "a video without frames; choose another file");
  Picture picture;
  picture.shape = media::tile_shape(width, height, tiling(media::Aspect::square));
  picture.frames = frames;
  picture.rows = media::video_rows(frames, config_.merge);
  picture.side = config_.tiling.tile;
  return picture;
}

Picture Encoder::video(const std::vector<media::Image>& frames) const {
  expect(!frames.empty(), Fault::data, "a video without frames; choose another file");
  auto video =
      measure_video(frames[0].width, frames[0].height, static_cast<std::int64_t>(frames.size()));
  const auto square = tiling(media::Aspect::square);
  for (const auto& frame : frames) {
    const auto tiles = media::make_tiles(frame, square);
    video.pixels.insert(video.pixels.end(), tiles.pixels.begin(), tiles.pixels.end());
  }
  return video;
}

void truncate(Example& example, std::int64_t max_tokens) {
  std::size_t kept = 0, pictures = 0;
  for (std::int64_t tokens = 0; kept < example.ids.size(); ++kept) {
    const bool picture = example.ids[kept] == kImageToken;
    tokens += picture ? example.pictures[pictures].rows : 1;
    if (tokens > max_tokens) break;
    pictures += picture;
  }
  example.ids.resize(kept);
  example.labels.resize(kept);
  example.pictures.resize(pictures);
}

std::int64_t num_learned(const Example& example) {
  if (example.labels.empty()) return 0;
  return std::count_if(example.labels.begin() + 1, example.labels.end(),
                       [](std::int64_t label) { return label != kIgnore; });
}

}  // namespace llava::input
