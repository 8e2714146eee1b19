// The bytes of one picture with checked access, and the decoders that read them.
#pragma once

#include "llava/base/check.h"
#include "llava/media/image.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace llava::media {

struct Source {
  std::string_view bytes;
  const std::string& where;  // for messages

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    llava::fail(Fault::data, where, ": ", parts..., "; replace the file or leave it out");
  }
  template <class... Parts>
  void expect(bool ok, const Parts&... parts) const {
    if (!ok) fail(parts...);
  }

  /// The bytes [begin, begin + count).  Throws Error(data) saying the file ends early.
  std::string_view part(std::size_t begin, std::size_t count) const {
    expect(begin <= bytes.size() && count <= bytes.size() - begin, "the file ends early, at byte ",
           bytes.size());
    return bytes.substr(begin, count);
  }
  std::uint32_t byte(std::size_t at) const { return static_cast<std::uint8_t>(part(at, 1)[0]); }
  std::uint32_t little16(std::size_t at) const { return byte(at) | byte(at + 1) << 8; }
  std::uint32_t little32(std::size_t at) const { return little16(at) | little16(at + 2) << 16; }
  std::uint32_t big16(std::size_t at) const { return byte(at) << 8 | byte(at + 1); }
  std::uint32_t big32(std::size_t at) const { return big16(at) << 16 | big16(at + 2); }
};

struct Size {
  std::int64_t width, height;
  std::int64_t beside = 0;  // bytes that decoding takes beside the pixels
};

/// One format. `size` reads the header; `decode` fills an image whose size is that header's and
/// whose bytes are there and zero. Both throw Error(data).
struct Decoder {
  const char* format;
  std::int64_t pixels_per_byte;  // the most that one byte of a file can hold; 0: no bound
  bool (*matches)(std::string_view bytes);
  Size (*size)(const Source& source);
  void (*decode)(const Source& source, Image& image);
};

extern const Decoder kJpeg, kPng, kWebp, kBmp, kGif, kPpm, kTga;

/// The EXIF orientation, 1 to 8, of a JPEG, PNG or WebP file; 1 where there is none or it is
/// damaged.
int exif_orientation(std::string_view bytes);

/// The picture turned as an EXIF orientation says.
Image oriented(Image image, int orientation);

}  // namespace llava::media
