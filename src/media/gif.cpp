// The first frame of a GIF as Pillow 10.3 shows it: transparent pixels have their palette colour,
// pixels beside the frame the transparent index or 0.
// Source: python-pillow/Pillow, src/PIL/GifImagePlugin.py, src/libImaging/GifDecode.c; the format:
// CompuServe, GIF89a Specification, 1990.
#include "source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace llava::media {
namespace {

struct Frame {
  std::int64_t canvas_width, canvas_height, left, top, width, height;
  bool interlaced = false;
  std::uint32_t outside = 0;  // the palette index beside the frame
  std::array<std::array<std::uint8_t, 3>, 256> palette;
  std::size_t data = 0;  // position of the code size
};

/// Takes over a palette unless it is a gray ramp, which for Pillow is no palette: what stood there
/// before stays, and that is the ramp or, behind a local ramp, the global palette.
void read_palette(const Source& source, std::size_t at, std::uint32_t flags, Frame& frame) {
  const std::size_t count = 2u << (flags & 7);
  const std::string_view bytes = source.part(at, 3 * count);
  bool ramp = true;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    ramp = ramp && static_cast<std::uint8_t>(bytes[i]) == i / 3;
  if (ramp) return;
  frame.palette = {};
  std::memcpy(frame.palette.data(), bytes.data(), bytes.size());
}

Frame read(const Source& source) {
  Frame frame;
  frame.canvas_width = source.little16(6);
  frame.canvas_height = source.little16(8);
  for (int i = 0; i < 256; ++i) frame.palette[i].fill(static_cast<std::uint8_t>(i));
  const std::uint32_t flags = source.byte(10);
  std::size_t at = 13;
  if (flags & 0x80) {
    read_palette(source, at, flags, frame);
    at += std::size_t{3} * (2u << (flags & 7));
  }
  for (;; ++at) {
    const std::uint32_t kind = source.byte(at);
    if (kind == ',') break;
    source.expect(kind != ';', "the GIF has no picture");
    if (kind != '!') continue;
    const bool control = source.byte(at + 1) == 0xf9;
    at += 2;
    if (control && source.byte(at) >= 4 && (source.byte(at + 1) & 1))
      frame.outside = source.byte(at + 4);
    while (const std::uint32_t length = source.byte(at)) at += 1 + length;
  }
  frame.left = source.little16(at + 1);
  frame.top = source.little16(at + 3);
  frame.width = source.little16(at + 5);
  frame.height = source.little16(at + 7);
  frame.canvas_width = std::max(frame.canvas_width, frame.left + frame.width);
  frame.canvas_height = std::max(frame.canvas_height, frame.top + frame.height);
  const std::uint32_t frame_flags = source.byte(at + 9);
  frame.interlaced = frame_flags & 0x40;
  at += 10;
  if (frame_flags & 0x80) {
    read_palette(source, at, frame_flags, frame);
    at += std::size_t{3} * (2u << (frame_flags & 7));
  }
  frame.data = at;
  return frame;
}

/// The bits of a chain of sub-blocks, lowest first.
class BitReader {
 public:
  BitReader(const Source& source, std::size_t at) : source_(source), at_(at) {}

  std::uint32_t take(int count) {
    while (bits_ < count) {
      if (left_ == 0) {
        left_ = source_.byte(at_++);
        source_.expect(left_ > 0, "the GIF picture ends early");
      }
      buffer_ |= source_.byte(at_++) << bits_;
      bits_ += 8;
      --left_;
    }
    const std::uint32_t value = buffer_ & ((1u << count) - 1);
    buffer_ >>= count;
    bits_ -= count;
    return value;
  }

 private:
  const Source& source_;
  std::size_t at_;
  std::uint32_t left_ = 0, buffer_ = 0;
  int bits_ = 0;
};

/// LZW codes -> `count` palette indices.
std::vector<std::uint8_t> decompress(const Source& source, std::size_t at, std::size_t count) {
  constexpr int kMostBits = 12;
  const int root_bits = static_cast<int>(source.byte(at));
  source.expect(root_bits >= 1 && root_bits < kMostBits, "GIF code size ", root_bits,
                " is out of range");
  BitReader bits(source, at + 1);
  const std::uint32_t clear = 1u << root_bits, end = clear + 1;
  // Code c spells the word of prefix[c] and then last[c].
  std::uint16_t prefix[1 << kMostBits];
  std::uint8_t last[1 << kMostBits], word[1 << kMostBits];
  std::uint32_t next = end + 1, previous = clear, first = 0;
  int width = root_bits + 1;
  std::vector<std::uint8_t> out;
  out.reserve(count);
  while (out.size() < count) {
    const std::uint32_t code = bits.take(width);
    if (code == clear) {
      next = end + 1, width = root_bits + 1, previous = clear;
      continue;
    }
    source.expect(code != end, "the GIF picture ends early");
    source.expect(code < next || (code == next && previous != clear), "a GIF code is damaged");
    std::size_t length = 0;
    std::uint32_t walk = code;
    if (code == next) word[length++] = static_cast<std::uint8_t>(first), walk = previous;
    for (; walk > end; walk = prefix[walk]) word[length++] = last[walk];
    source.expect(walk < clear, "a GIF code is damaged");
    first = walk;
    word[length++] = static_cast<std::uint8_t>(first);
    for (; length > 0 && out.size() < count; --length) out.push_back(word[length - 1]);
    if (previous != clear && next < (1u << kMostBits)) {
      prefix[next] = static_cast<std::uint16_t>(previous);
      last[next] = static_cast<std::uint8_t>(first);
      if (++next == (1u << width) && width < kMostBits) ++width;
    }
    previous = code;
  }
  return out;
}

Size gif_size(const Source& source) {
  const Frame frame = read(source);
  return {frame.canvas_width, frame.canvas_height, frame.width * frame.height};
}

void decode_gif(const Source& source, Image& image) {
  const Frame frame = read(source);
  const std::vector<std::uint8_t> indices =
      decompress(source, frame.data, frame.width * frame.height);
  for (std::size_t i = 0; i < image.rgb.size(); i += 3)
    std::memcpy(&image.rgb[i], frame.palette[frame.outside].data(), 3);
  constexpr std::array<std::array<std::int64_t, 2>, 4> kPasses{{{0, 8}, {4, 8}, {2, 4}, {1, 2}}};
  const std::uint8_t* in = indices.data();
  const auto read_row = [&](std::int64_t y) {
    std::uint8_t* out = &image.rgb[3 * ((frame.top + y) * image.width + frame.left)];
    for (std::int64_t x = 0; x < frame.width; ++x, out += 3)
      std::memcpy(out, frame.palette[*in++].data(), 3);
  };
  if (frame.width == 0) return;
  if (frame.interlaced) {
    for (const auto& [first, step] : kPasses)
      for (std::int64_t y = first; y < frame.height; y += step) read_row(y);
  } else {
    for (std::int64_t y = 0; y < frame.height; ++y) read_row(y);
  }
}

}  // namespace

// A code of a few bits spells at most 4096 pixels.
const Decoder kGif{"gif", 4096,
                   [](std::string_view bytes) {
                     return bytes.starts_with("GIF87a") || bytes.starts_with("GIF89a");
                   },
                   gif_size, decode_gif};

}  // namespace llava::media
