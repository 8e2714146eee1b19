// Windows and OS/2 bitmaps, the kinds that Pillow 10.3 reads: 1, 4, 8, 16, 24, 32 bits, palettes,
// run lengths, the usual bit fields.
// Source: python-pillow/Pillow, src/PIL/BmpImagePlugin.py.
#include "source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace llava::media {
namespace {

enum Compression : std::uint32_t { kRaw = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3 };

struct Header {
  std::int64_t width, height;
  std::uint32_t bits, compression, colours;
  bool top_down;
  std::size_t header_end, pixels, palette_entry;
};

Header read(const Source& source) {
  Header header{};
  header.pixels = source.little32(10);
  const std::uint32_t length = source.little32(14);
  source.expect(length == 12 || length == 40 || length == 52 || length == 56 || length == 64 ||
                    length == 108 || length == 124,
                "the BMP header has an unknown length, ", length);
  header.header_end = 14 + length;
  source.part(14, length);
  if (length == 12) {
    header.width = source.little16(18);
    header.height = source.little16(20);
    header.bits = source.little16(24);
    header.palette_entry = 3;
  } else {
    header.top_down = source.byte(25) == 0xff;
    header.width = source.little32(18);
    header.height = source.little32(22);
    if (header.top_down) header.height = (std::int64_t{1} << 32) - header.height;
    header.bits = source.little16(28);
    header.compression = source.little32(30);
    header.colours = source.little32(46);
    header.palette_entry = 4;
  }
  if (header.colours == 0 && header.bits <= 8) header.colours = 1u << header.bits;
  return header;
}

using Palette = std::array<std::array<std::uint8_t, 3>, 256>;

Palette read_palette(const Source& source, const Header& header) {
  source.expect(header.colours <= 65536, "the BMP palette has ", header.colours, " colours");
  Palette palette{};
  for (std::size_t i = 0; i < std::min<std::size_t>(header.colours, 256); ++i) {
    const std::size_t at = header.header_end + i * header.palette_entry;
    for (std::size_t c = 0; c < 3; ++c)
      palette[i][c] = static_cast<std::uint8_t>(source.byte(at + 2 - c));
  }
  return palette;
}

/// Run-length coded palette indices, in file order; what the codes leave out is index 0.
std::vector<std::uint8_t> read_runs(const Source& source, const Header& header) {
  const bool nibbles = header.compression == kRle4;
  const std::size_t total = header.width * header.height;
  std::vector<std::uint8_t> indices;
  indices.reserve(total);
  const auto row_rest = [&] {
    return (header.width - indices.size() % header.width) % header.width;
  };
  std::size_t at = header.pixels;
  std::int64_t x = 0;
  while (indices.size() < total) {
    const std::uint32_t count = source.byte(at), code = source.byte(at + 1);
    at += 2;
    if (count > 0) {
      const auto run = std::clamp<std::int64_t>(header.width - x, 0, count);
      for (std::int64_t i = 0; i < run; ++i)
        indices.push_back(nibbles ? (i % 2 == 0 ? code >> 4 : code & 15) : code);
      x += run;
    } else if (code == 0) {
      indices.resize(indices.size() + row_rest());
      x = 0;
    } else if (code == 1) {
      break;
    } else if (code == 2) {
      const std::size_t step = source.byte(at) + source.byte(at + 1) * header.width;
      at += 2;
      indices.resize(std::min(indices.size() + step, total));
      x = indices.size() % header.width;
    } else {
      const std::size_t bytes = nibbles ? code / 2 : code;
      for (const char byte : source.part(at, bytes)) {
        const auto value = static_cast<std::uint8_t>(byte);
        if (nibbles) indices.push_back(value >> 4);
        indices.push_back(nibbles ? value & 15 : value);
      }
      x += code;
      at += bytes + bytes % 2;
    }
  }
  indices.resize(total);
  return indices;
}

/// Where red, green and blue stand in a pixel of 16, 24 or 32 bits, and how many bits each has.
struct Layout {
  std::uint32_t shift[3], bits[3];
};

Layout read_layout(const Source& source, const Header& header) {
  constexpr Layout k555{{10, 5, 0}, {5, 5, 5}}, k565{{11, 5, 0}, {5, 6, 5}};
  constexpr Layout kBgr{{16, 8, 0}, {8, 8, 8}}, kXbgr{{24, 16, 8}, {8, 8, 8}},
      kRgb{{0, 8, 16}, {8, 8, 8}};
  if (header.compression == kRaw) return header.bits == 16 ? k555 : kBgr;
  const std::uint32_t red = source.little32(54), green = source.little32(58),
                      blue = source.little32(62);
  const auto is = [&](std::uint32_t r, std::uint32_t g, std::uint32_t b) {
    return red == r && green == g && blue == b;
  };
  if (header.bits == 16 && is(0xf800, 0x7e0, 0x1f)) return k565;
  if (header.bits == 16 && is(0x7c00, 0x3e0, 0x1f)) return k555;
  if (header.bits >= 24 && is(0xff0000, 0xff00, 0xff)) return kBgr;
  if (header.bits == 32 && is(0, 0, 0)) return kBgr;
  if (header.bits == 32 && is(0xff000000, 0xff0000, 0xff00)) return kXbgr;
  if (header.bits == 32 && is(0xff, 0xff00, 0xff0000)) return kRgb;
  source.fail("BMP bit fields of an unknown layout");
}

void decode_bmp(const Source& source, Image& image) {
  const Header header = read(source);
  const auto bits = header.bits;
  source.expect(bits == 1 || bits == 4 || bits == 8 || bits == 16 || bits == 24 || bits == 32,
                "BMP with ", bits, " bits a pixel is not supported");
  const bool runs = header.compression == kRle8 || header.compression == kRle4;
  source.expect(header.compression <= kBitFields && (!runs || bits <= 8) &&
                    (header.compression != kBitFields || bits >= 16),
                "BMP compression ", header.compression, " with ", bits,
                " bits a pixel is not supported");
  const auto target_row = [&](std::int64_t y) {
    return image.rgb.data() + 3 * image.width * (header.top_down ? y : image.height - 1 - y);
  };
  if (bits > 8) {
    const Layout layout = read_layout(source, header);
    const std::size_t step = bits / 8, row_bytes = (image.width * step + 3) / 4 * 4;
    for (std::int64_t y = 0; y < image.height; ++y) {
      const char* in = source.part(header.pixels + y * row_bytes, image.width * step).data();
      std::uint8_t* out = target_row(y);
      for (std::int64_t x = 0; x < image.width; ++x, in += step) {
        std::uint32_t pixel = 0;
        for (std::size_t i = 0; i < step; ++i)
          pixel |= static_cast<std::uint32_t>(static_cast<std::uint8_t>(in[i])) << 8 * i;
        for (int c = 0; c < 3; ++c) {
          const std::uint32_t most = (1u << layout.bits[c]) - 1;
          *out++ = static_cast<std::uint8_t>((pixel >> layout.shift[c] & most) * 255 / most);
        }
      }
    }
    return;
  }
  const Palette palette = read_palette(source, header);
  const std::vector<std::uint8_t> indices =
      runs ? read_runs(source, header) : std::vector<std::uint8_t>();
  const std::size_t row_bytes = (image.width * bits + 31) / 32 * 4;
  for (std::int64_t y = 0; y < image.height; ++y) {
    std::uint8_t* out = target_row(y);
    const char* row =
        runs ? nullptr
             : source.part(header.pixels + y * row_bytes, (image.width * bits + 7) / 8).data();
    for (std::int64_t x = 0; x < image.width; ++x, out += 3) {
      std::uint32_t index;
      if (runs) {
        index = indices[y * image.width + x];
      } else {
        const std::uint32_t byte = static_cast<std::uint8_t>(row[x * bits / 8]);
        index = byte >> (8 - bits - x * bits % 8) & ((1u << bits) - 1);
      }
      std::memcpy(out, palette[index].data(), 3);
    }
  }
}

Size bmp_size(const Source& source) {
  const Header header = read(source);
  const bool runs = header.compression == kRle8 || header.compression == kRle4;
  const bool absurd = header.width > kMaxSide || header.height > kMaxSide;  // refused by the caller
  return {header.width, header.height, runs && !absurd ? header.width * header.height : 0};
}

}  // namespace

const Decoder kBmp{"bmp", 0, [](std::string_view bytes) { return bytes.starts_with("BM"); },
                   bmp_size, decode_bmp};

}  // namespace llava::media
