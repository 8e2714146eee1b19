// The EXIF orientation, found by a bounded walk, and what it does to a picture.
// Source: CIPA DC-008 (Exif 2.32); python-pillow/Pillow, ImageOps.exif_transpose.
#include "source.h"

#include <algorithm>

namespace llava::media {
namespace {

std::uint32_t number(std::string_view bytes, std::size_t at, std::size_t count, bool big) {
  if (at > bytes.size() || count > bytes.size() - at) return 0;
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < count; ++i)
    value = value << 8 | static_cast<std::uint8_t>(bytes[big ? at + i : at + count - 1 - i]);
  return value;
}

/// A TIFF header and its first directory, where tag 0x0112 is the orientation.
int tiff_orientation(std::string_view tiff) {
  const bool big = tiff.starts_with(std::string_view("MM\0*", 4));
  if (!big && !tiff.starts_with(std::string_view("II*\0", 4))) return 1;
  const std::size_t directory = number(tiff, 4, 4, big);
  const std::size_t entries = std::min<std::size_t>(number(tiff, directory, 2, big), 256);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * i;
    constexpr std::uint32_t kOrientation = 0x112, kShort = 3;
    if (number(tiff, entry, 2, big) != kOrientation) continue;
    if (number(tiff, entry + 2, 2, big) != kShort || number(tiff, entry + 4, 4, big) != 1) return 1;
    const std::uint32_t value = number(tiff, entry + 8, 2, big);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

std::string_view tail(std::string_view bytes, std::size_t at, std::size_t count) {
  return at < bytes.size() ? bytes.substr(at, count) : std::string_view();
}

constexpr std::string_view kExif("Exif\0\0", 6);

std::string_view find_jpeg(std::string_view bytes) {
  for (std::size_t at = 2; at + 4 <= bytes.size();) {
    const std::uint32_t marker = number(bytes, at, 2, true),
                        length = number(bytes, at + 2, 2, true);
    if (marker < 0xff01 || marker == 0xffda || length < 2) break;  // 0xffda: the picture begins
    const std::string_view segment = tail(bytes, at + 4, length - 2);
    if (marker == 0xffe1 && segment.starts_with(kExif)) return segment.substr(kExif.size());
    at += 2 + length;
  }
  return {};
}

/// PNG and WebP are lists of chunks: a name, a length, the bytes.
std::string_view find_chunk(std::string_view bytes, std::size_t at, bool png,
                            std::string_view wanted) {
  while (at + 8 <= bytes.size()) {
    const std::uint64_t length = number(bytes, png ? at : at + 4, 4, png);
    if (bytes.substr(png ? at + 4 : at, 4) == wanted) return tail(bytes, at + 8, length);
    at += 8 + (png ? length + 4 : length + length % 2);  // a checksum, or even addresses
  }
  return {};
}

}  // namespace

int exif_orientation(std::string_view bytes) {
  std::string_view exif;
  if (kJpeg.matches(bytes)) exif = find_jpeg(bytes);
  if (kPng.matches(bytes)) exif = find_chunk(bytes, 8, true, "eXIf");
  if (kWebp.matches(bytes)) exif = find_chunk(bytes, 12, false, "EXIF");
  if (exif.starts_with(kExif)) exif.remove_prefix(kExif.size());
  return tiff_orientation(exif);
}

Image oriented(Image image, int orientation) {
  if (orientation <= 1 || orientation > 8) return image;
  // 2: mirrored; 3: upside down; 4: both; 5 to 8: the same with rows and columns exchanged first.
  const bool exchange = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  Image out{exchange ? image.height : image.width, exchange ? image.width : image.height, {}};
  out.rgb.resize(image.rgb.size());
  for (std::int64_t y = 0; y < out.height; ++y)
    for (std::int64_t x = 0; x < out.width; ++x) {
      const std::int64_t u = flip_x ? out.width - 1 - x : x, v = flip_y ? out.height - 1 - y : y;
      const std::int64_t from = exchange ? u * image.width + v : v * image.width + u;
      std::copy_n(&image.rgb[3 * from], 3, &out.rgb[3 * (y * out.width + x)]);
    }
  return out;
}

}  // namespace llava::media
