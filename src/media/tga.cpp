// Targa: palettes, gray, 16, 24 and 32 bits, raw or run lengths.
// Source: python-pillow/Pillow 10.3, src/PIL/TgaImagePlugin.py; Truevision, TGA File Format
// Specification 2.0.
#include "source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace llava::media {
namespace {

struct Header {
  std::int64_t width, height;
  std::uint32_t kind, bits;  // kind: 1 palette, 2 colour, 3 gray
  bool runs, top_down, right_to_left;
  std::uint32_t map_first, map_count, map_bits;  // the palette; bits 0: none
  std::size_t map, pixels;
};

bool is_tga(std::string_view bytes) {
  if (bytes.size() < 18) return false;
  const auto byte = [&](std::size_t at) { return static_cast<std::uint8_t>(bytes[at]); };
  const int map = byte(1), kind = byte(2) & ~8, map_bits = byte(7), bits = byte(16);
  const bool known_map =
      map == 0 || (map == 1 && (map_bits == 16 || map_bits == 24 || map_bits == 32));
  const bool known_pixels = (kind == 1 && bits == 8) ||
                            (kind == 2 && (bits == 16 || bits == 24 || bits == 32)) ||
                            (kind == 3 && (bits == 8 || bits == 16));
  return known_map && known_pixels && (byte(12) || byte(13)) && (byte(14) || byte(15));
}

Header read(const Source& source) {
  Header header{};
  const std::uint32_t flags = source.byte(17);
  header.kind = source.byte(2) & 7;
  header.runs = source.byte(2) & 8;
  header.width = source.little16(12);
  header.height = source.little16(14);
  header.bits = source.byte(16);
  header.top_down = flags & 0x20;
  header.right_to_left = flags & 0x10;
  header.map = 18 + source.byte(0);
  if (source.byte(1)) {
    header.map_first = source.little16(3);
    header.map_count = source.little16(5);
    header.map_bits = source.byte(7);
  }
  header.pixels = header.map + std::size_t{header.map_count} * (header.map_bits / 8);
  return header;
}

Size tga_size(const Source& source) {
  const Header header = read(source);
  return {header.width, header.height, header.width * header.height * (header.bits / 8)};
}

/// One stored colour (blue first) -> RGB.
void put_colour(const char* in, std::uint32_t bits, std::uint8_t* out) {
  const auto byte = [&](int i) {
    return static_cast<std::uint32_t>(static_cast<std::uint8_t>(in[i]));
  };
  if (bits == 16) {
    const std::uint32_t pixel = byte(0) | byte(1) << 8;
    for (int c = 0; c < 3; ++c)
      out[c] = static_cast<std::uint8_t>((pixel >> (10 - 5 * c) & 31) * 255 / 31);
  } else {
    for (int c = 0; c < 3; ++c) out[c] = static_cast<std::uint8_t>(byte(2 - c));
  }
}

/// Pixels as stored, runs unrolled.
std::vector<char> read_stored(const Source& source, const Header& header) {
  const std::size_t step = header.bits / 8, total = header.width * header.height * step;
  if (!header.runs) {
    const std::string_view raw = source.part(header.pixels, total);
    return {raw.begin(), raw.end()};
  }
  std::vector<char> pixels;
  pixels.reserve(total);
  for (std::size_t at = header.pixels; pixels.size() < total;) {
    const std::uint32_t packet = source.byte(at++);
    const std::size_t count = (packet & 127) + 1;
    source.expect(pixels.size() + count * step <= total, "a TGA run leaves the picture");
    const bool repeat = packet & 128;
    const std::string_view values = source.part(at, repeat ? step : count * step);
    for (std::size_t i = 0; i < (repeat ? count : 1); ++i)
      pixels.insert(pixels.end(), values.begin(), values.end());
    at += values.size();
  }
  return pixels;
}

void decode_tga(const Source& source, Image& image) {
  const Header header = read(source);
  std::array<std::array<std::uint8_t, 3>, 256> palette{};
  if (header.map_bits == 0) {  // gray; Pillow looks up gray in a palette where there is one
    for (int i = 0; i < 256; ++i) palette[i].fill(static_cast<std::uint8_t>(i));
  } else {
    const std::size_t entry = header.map_bits / 8;
    const std::string_view map = source.part(header.map, header.map_count * entry);
    for (std::size_t i = 0; i < header.map_count && header.map_first + i < 256; ++i)
      put_colour(map.data() + i * entry, header.map_bits, palette[header.map_first + i].data());
  }
  const std::vector<char> stored = read_stored(source, header);
  const char* in = stored.data();
  for (std::int64_t row = 0; row < image.height; ++row) {
    const std::int64_t y = header.top_down ? row : image.height - 1 - row;
    for (std::int64_t column = 0; column < image.width; ++column, in += header.bits / 8) {
      const std::int64_t x = header.right_to_left ? image.width - 1 - column : column;
      std::uint8_t* out = &image.rgb[3 * (y * image.width + x)];
      if (header.kind == 2)
        put_colour(in, header.bits, out);
      else
        std::memcpy(out, palette[static_cast<std::uint8_t>(in[0])].data(), 3);
    }
  }
}

}  // namespace

// A run of 128 pixels takes two bytes.
const Decoder kTga{"tga", 128, is_tga, tga_size, decode_tga};

}  // namespace llava::media
