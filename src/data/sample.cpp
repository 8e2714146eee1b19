#include "llava/data/sample.h"

#include "json_stream.h"
#include "llava/base/check.h"
#include "llava/base/files.h"
#include "llava/media/video.h"

#include <algorithm>
#include <filesystem>

namespace llava::data {
namespace {

/// Bytes of the whitespace character that `text` begins with, 0 if it begins with none.
/// Source: Python's str.isspace: Unicode bidirectional classes WS, B, S and category Zs.
std::size_t space_at(std::string_view text) {
  const auto c = static_cast<unsigned char>(text.empty() ? 'x' : text[0]);
  if (c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F)) return 1;
  if (c < 0xC2) return 0;
  const auto begins = [&](std::string_view bytes) { return text.substr(0, bytes.size()) == bytes; };
  if (begins("\xC2\x85") || begins("\xC2\xA0")) return 2;  // U+0085, U+00A0
  if (text.size() >= 3 && begins("\xE2\x80")) {            // U+2000..200A, 2028, 2029, 202F
    const auto last = static_cast<unsigned char>(text[2]);
    return last <= 0x8A || last == 0xA8 || last == 0xA9 || last == 0xAF ? 3 : 0;
  }
  // U+1680, U+205F, U+3000
  return begins("\xE1\x9A\x80") || begins("\xE2\x81\x9F") || begins("\xE3\x80\x80") ? 3 : 0;
}

/// Runs `work`, naming the record in what it throws.
template <class Work>
auto for_record(const Record& record, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    const std::string text = error.what();
    const bool named = text.rfind(record.where, 0) == 0;
    throw Error(error.fault(), named ? text : record.where + ": " + text);
  }
}

/// Several pictures in one sample are padded, not cut into tiles.
/// Source: LLaVA-VL/LLaVA-NeXT, train.py, __getitem__: process_image(f, "pad").
std::optional<media::Aspect> aspect_of(const Record& record, const MediaConfig& media) {
  if (record.images.size() > 1 && media.pad_groups) return media::Aspect::pad;
  return std::nullopt;
}

media::VideoOptions video_options(const MediaConfig& media) {
  return {.frames = media.video_frames, .image = media.image};
}

input::Example encode(const Record& record, const input::Encoder& encoder,
                      std::vector<input::Picture> pictures) {
  auto example = encoder.encode(placed(record, encoder.chat()), std::move(pictures));
  example.id = record.id;
  return example;
}

}  // namespace

std::string image_path(const Record& record, const std::string& name, const MediaConfig& media) {
  const std::string& folder = media.image_folder;
  return path_inside(folder.empty() ? "." : folder, name, record.where + ": image");
}

std::string video_path(const Record& record, const MediaConfig& media) {
  const std::string& folder = media.video_folder.empty() ? media.image_folder : media.video_folder;
  return path_inside(folder.empty() ? "." : folder, record.video, record.where + ": video");
}

media::ImageHeader read_image_header(const std::string& path, const media::ImageOptions& options) {
  const ReadFile file(path);
  std::string bytes;
  for (std::uint64_t size : {std::uint64_t{4} << 10, std::uint64_t{256} << 10, file.size()}) {
    size = std::min(size, file.size());
    bytes.resize(size);
    bytes.resize(file.read(0, bytes.data(), size));
    try {
      return media::read_header(bytes, path, options);
    } catch (const Error&) {  // perhaps the size stands further back, behind a thumbnail
      if (size == file.size()) throw;
    }
  }
  fail(Fault::data, path, ": cannot be read");
}

text::Conversation placed(const Record& record, const text::Template& chat) {
  const auto pictures = record.images.size() + !record.video.empty();
  if (pictures == 0) return record.conversation;
  return text::place_images(record.conversation, chat,
                            pictures == 1 ? text::Placement::first : text::Placement::keep_many);
}

input::Example load_example(const Record& record, const input::Encoder& encoder,
                            const MediaConfig& media) {
  return for_record(record, [&] {
    std::vector<input::Picture> pictures;
    const auto aspect = aspect_of(record, media);
    for (const auto& name : record.images)
      pictures.push_back(
          encoder.picture(media::load_image(image_path(record, name, media), media.image), aspect));
    if (!record.video.empty())
      pictures.push_back(
          encoder.video(media::load_video(video_path(record, media), video_options(media)).frames));
    return encode(record, encoder, std::move(pictures));
  });
}

input::Example measure_example(const Record& record, const input::Encoder& encoder,
                               const MediaConfig& media) {
  return for_record(record, [&] {
    std::vector<input::Picture> pictures;
    const auto aspect = aspect_of(record, media);
    for (const auto& name : record.images) {
      const auto header = read_image_header(image_path(record, name, media), media.image);
      pictures.push_back(encoder.measure(header.width, header.height, aspect));
    }
    if (!record.video.empty()) {
      const auto video = media::measure_video(video_path(record, media), video_options(media));
      pictures.push_back(encoder.measure_video(video.width, video.height, video.frames));
    }
    return encode(record, encoder, std::move(pictures));
  });
}

std::int64_t count_words(std::string_view text) {
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t at = 0; at < text.size();) {
    const auto bytes = space_at(text.substr(at));
    words += bytes == 0 && !inside;
    inside = bytes == 0;
    at += std::max<std::size_t>(bytes, 1);
  }
  return words;
}

}  // namespace llava::data
