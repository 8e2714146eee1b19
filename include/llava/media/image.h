// Files -> RGB bytes, equal to Pillow 10.3's convert("RGB"): alpha dropped, palettes looked up,
// 16-bit gray clamped, no colour profiles.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llava::media {

/// Rows top to bottom, pixels left to right, three bytes R, G, B each; rgb.size() = 3*width*height.
struct Image {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb;
};

struct ImageOptions {
  bool apply_exif =
      false;  // turn the picture as its EXIF orientation says; the reference ignores it
  std::int64_t max_pixels = 178'956'970;  // width * height; Pillow's limit for an error
};

/// No side may be longer, whatever the number of pixels: what resampling costs grows with it.
inline constexpr std::int64_t kMaxSide = 1'000'000;

/// What a header says, without decoding.
struct ImageHeader {
  std::int64_t width = 0, height = 0;  // as load_image would return them
  std::string format;                  // "jpeg", "png", "webp", "bmp", "gif", "tga", "ppm"
};

/// Decodes by content, never by file name. `where` names the bytes in messages.
/// Throws Error(data) for anything that is not a whole image of a known format or exceeds a limit;
/// limits are checked before memory is taken. Safe for any number of threads.
Image decode_image(std::string_view bytes, const std::string& where,
                   const ImageOptions& options = {});
Image load_image(const std::string& path, const ImageOptions& options = {});

/// Throws Error(data) like decode_image, but sees damage in the header only. The first bytes of a
/// file are enough where the header lies in them; otherwise this fails, and all bytes are needed.
ImageHeader read_header(std::string_view bytes, const std::string& where,
                        const ImageOptions& options = {});

/// Formats compiled in, for `llava doctor`.
std::vector<std::string> image_formats();

}  // namespace llava::media
