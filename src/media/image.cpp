#include "llava/media/image.h"

#include "source.h"

#include "llava/base/files.h"
#include "llava/base/log.h"

namespace llava::media {
namespace {

// TGA has no signature and is therefore asked last.
constexpr const Decoder* kDecoders[] = {&kJpeg, &kPng, &kWebp, &kBmp, &kGif, &kPpm, &kTga};

const Decoder& find_decoder(const Source& source) {
  source.expect(!source.bytes.empty(), "the file is empty");
  for (const Decoder* decoder : kDecoders)
    if (decoder->matches(source.bytes)) return *decoder;
  source.fail("not an image of a known format (JPEG, PNG, WebP, BMP, GIF, PPM, TGA)");
}

Size checked_size(const Source& source, const Decoder& decoder, const ImageOptions& options) {
  const Size size = decoder.size(source);
  source.expect(size.width >= 1 && size.height >= 1, "the ", decoder.format, " header says ",
                size.width, "x", size.height, " pixels");
  source.expect(size.width <= kMaxSide && size.height <= kMaxSide &&
                    size.width <= options.max_pixels / size.height,
                "the ", decoder.format, " header says ", size.width, "x", size.height,
                " pixels, the limit is ", options.max_pixels, " in all and ", kMaxSide, " a side");
  const auto bytes = static_cast<std::int64_t>(source.bytes.size());
  source.expect(
      decoder.pixels_per_byte == 0 || size.width * size.height / decoder.pixels_per_byte <= bytes,
      "the ", decoder.format, " header says ", size.width, "x", size.height,
      " pixels, too many for a file of ", bytes, " bytes");
  const bool turned = options.apply_exif && exif_orientation(source.bytes) > 1;
  const std::int64_t memory = 3 * size.width * size.height * (turned ? 2 : 1) + size.beside;
  source.expect(memory <= options.max_bytes, "decoding the ", decoder.format, " picture of ",
                size.width, "x", size.height, " pixels takes ", (memory >> 20) + 1,
                " MiB, the limit is ", options.max_bytes >> 20, " (--image_memory)");
  return size;
}

}  // namespace

ImageHeader read_header(std::string_view bytes, const std::string& where,
                        const ImageOptions& options) {
  const Source source{bytes, where};
  const Decoder& decoder = find_decoder(source);
  const Size size = checked_size(source, decoder, options);
  const bool sideways = options.apply_exif && exif_orientation(bytes) >= 5;
  return {sideways ? size.height : size.width, sideways ? size.width : size.height, decoder.format};
}

Image decode_image(std::string_view bytes, const std::string& where, const ImageOptions& options) {
  const Source source{bytes, where};
  const Decoder& decoder = find_decoder(source);
  const Size size = checked_size(source, decoder, options);
  Image image{size.width, size.height, {}};
  image.rgb.resize(3 * size.width * size.height);
  decoder.decode(source, image);
  return options.apply_exif ? oriented(std::move(image), exif_orientation(bytes)) : image;
}

Image load_image(const std::string& path, const ImageOptions& options) {
  return decode_image(read_file(path), path, options);
}

ImageOptions ImageFlags::options() const {
  constexpr std::int64_t kMost = 1 << 20;
  expect(exif == "apply" || exif == "ignore", Fault::usage,
         "--exif: expected apply or ignore, found \"", exif, "\"");
  expect(image_memory >= 1 && image_memory <= kMost, Fault::usage, "--image_memory ", image_memory,
         ": expected MiB, 1 to ", kMost);
  if (exif == "apply") log::info("pictures are turned as their EXIF orientation says");
  return {.apply_exif = exif == "apply", .max_bytes = image_memory << 20};
}

std::vector<std::string> image_formats() {
  std::vector<std::string> names;
  for (const Decoder* decoder : kDecoders) names.emplace_back(decoder->format);
  return names;
}

}  // namespace llava::media
