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
  // What decoding may take: the pixels, three bytes each, and what the format's decoder keeps
  // beside them (3 to 6 bytes a pixel for progressive JPEG, 4 for lossless WebP). 83 million pixels
  // of a plain photo; with the tiles made of it, a small hostile file stays below 256 MiB.
  std::int64_t max_bytes = std::int64_t{240} << 20;
};

/// The same as options of the command line.
struct ImageFlags {
  std::string exif = "ignore";
  std::int64_t image_memory = ImageOptions{}.max_bytes >> 20;

  template <class Field>
  void fields(Field& field) {
    field("exif", exif, "orientation that cameras note in pictures: apply or ignore");
    field("image_memory", image_memory, "MiB that decoding one picture may take");
  }

  /// Logs that pictures are turned, if they are.  Throws Error(usage) naming the option.
  ImageOptions options() const;
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
