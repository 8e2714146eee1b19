// Netpbm: P1 to P6.  Source: python-pillow/Pillow 10.3, src/PIL/PpmImagePlugin.py.
#include "source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace llava::media {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// Words between white space and comments.
class Words {
 public:
  Words(const Source& source, std::size_t at) : source_(source), at_(at) {}

  /// The next character that is neither white space nor comment.
  char next() {
    for (;; ++at_) {
      const char c = source_.part(at_, 1)[0];
      if (c == '#') {
        while (source_.part(at_, 1)[0] != '\n' && source_.bytes[at_] != '\r') ++at_;
      } else if (!is_space(c)) {
        return c;
      }
    }
  }

  char take() {
    const char c = next();
    ++at_;
    return c;
  }

  std::uint32_t number() {
    next();
    std::uint32_t value = 0;
    const std::size_t begin = at_;
    for (; at_ < source_.bytes.size() && !is_space(source_.bytes[at_]) && source_.bytes[at_] != '#';
         ++at_) {
      const char c = source_.bytes[at_];
      source_.expect(c >= '0' && c <= '9' && at_ - begin < 9, "no number at byte ", at_);
      value = 10 * value + static_cast<std::uint32_t>(c - '0');
    }
    return value;
  }

  std::size_t at() const { return at_; }

 private:
  const Source& source_;
  std::size_t at_;
};

struct Header {
  std::int64_t width, height;
  std::uint32_t kind, most;  // the digit after P; the value of white
  std::size_t pixels;
};

Header read(const Source& source) {
  Header header{};
  header.kind = source.byte(1) - '0';
  Words words(source, 2);
  header.width = words.number();
  header.height = words.number();
  header.most = header.kind == 1 || header.kind == 4 ? 1 : words.number();
  source.expect(header.most > 0 && header.most < 65536, "the value of white is ", header.most);
  header.pixels = words.at() + 1;  // one white space
  return header;
}

Size ppm_size(const Source& source) {
  const Header header = read(source);
  return {header.width, header.height};
}

/// A sample -> byte. Gray with more than 8 bits becomes 16-bit gray first, which is then clamped.
std::uint8_t to_byte(std::uint32_t value, const Header& header, bool gray) {
  const double scale = gray && header.most > 255 ? 65535.0 : 255.0;
  const double scaled = std::nearbyint(static_cast<double>(value) / header.most * scale);
  return static_cast<std::uint8_t>(std::min(scaled, 255.0));
}

void decode_ppm(const Source& source, Image& image) {
  const Header header = read(source);
  const bool gray = header.kind != 3 && header.kind != 6;
  const std::int64_t channels = gray ? 1 : 3;
  std::uint8_t* out = image.rgb.data();
  const auto put = [&](std::uint8_t byte) {
    if (gray)
      std::memset(out, byte, 3);
    else
      *out = byte;
    out += gray ? 3 : 1;
  };
  const std::int64_t samples = image.width * image.height * channels;
  if (header.kind <= 3) {
    Words words(source, header.pixels - 1);
    for (std::int64_t i = 0; i < samples; ++i) {
      if (header.kind == 1) {
        const char c = words.take();
        source.expect(c == '0' || c == '1', "a pixel of a P1 file is neither 0 nor 1");
        put(c == '0' ? 255 : 0);
        continue;
      }
      const std::uint32_t value = words.number();
      source.expect(value <= header.most, "a pixel is ", value, ", white is ", header.most);
      put(to_byte(value, header, gray));
    }
    return;
  }
  if (header.kind == 4) {
    const std::size_t row_bytes = (image.width + 7) / 8;
    const std::string_view bits = source.part(header.pixels, row_bytes * image.height);
    for (std::int64_t y = 0; y < image.height; ++y)
      for (std::int64_t x = 0; x < image.width; ++x)
        put(bits[y * row_bytes + x / 8] >> (7 - x % 8) & 1 ? 0 : 255);
    return;
  }
  const std::int64_t step = header.most > 255 ? 2 : 1;
  source.part(header.pixels, samples * step);
  for (std::int64_t i = 0; i < samples; ++i) {
    const std::size_t at = header.pixels + i * step;
    put(to_byte(step == 2 ? source.big16(at) : source.byte(at), header, gray));
  }
}

}  // namespace

const Decoder kPpm{"ppm", 8,
                   [](std::string_view bytes) {
                     return bytes.size() > 2 && bytes[0] == 'P' && bytes[1] >= '1' &&
                            bytes[1] <= '6' && is_space(bytes[2]);
                   },
                   ppm_size, decode_ppm};

}  // namespace llava::media
