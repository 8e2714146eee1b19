// PNG through libpng, converted as Pillow converts: alpha and transparency dropped, 16-bit gray
// clamped to 255, other 16-bit samples cut to their high byte, no gamma.
#include "source.h"

#include <png.h>
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

namespace llava::media {
namespace {

constexpr std::string_view kSignature("\x89PNG\r\n\x1a\n", 8);

struct Reader {
  std::string_view rest;
  png_structp png = nullptr;
  png_infop info = nullptr;
  char message[128] = "no memory";

  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* reader = static_cast<Reader*>(png_get_error_ptr(png));
  std::snprintf(reader->message, sizeof reader->message, "%s", message);
  png_longjmp(png, 1);
}

void read(png_structp png, png_bytep target, std::size_t count) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (count > reader->rest.size()) png_error(png, "the file ends early");
  std::memcpy(target, reader->rest.data(), count);
  reader->rest.remove_prefix(count);
}

/// Only plain data lives in the frames between setjmp and longjmp. Returns whether it went well.
bool read_info(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_read_fn(reader.png, &reader, read);
  png_set_user_limits(reader.png, 0x7fffffff, 0x7fffffff);  // ours come later
  // No chunk but those that make pixels is looked at.
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_read_info(reader.png, reader.info);
  return true;
}

/// One row of samples, as libpng leaves them (packed bits spread to bytes), -> RGB.
struct RowConverter {
  int type, depth;
  std::uint8_t palette[256][3];

  void operator()(const std::uint8_t* in, std::int64_t width, std::uint8_t* out) const {
    const std::int64_t step = depth == 16 ? 2 : 1;  // 16 bits: the high byte stands first
    const bool gray = !(type & PNG_COLOR_MASK_COLOR);
    const std::int64_t channels =
        (gray || type == PNG_COLOR_TYPE_PALETTE ? 1 : 3) + ((type & PNG_COLOR_MASK_ALPHA) ? 1 : 0);
    const int scale = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
    for (std::int64_t x = 0; x < width; ++x, in += channels * step, out += 3) {
      if (type == PNG_COLOR_TYPE_PALETTE) {
        std::memcpy(out, palette[in[0]], 3);
      } else if (type == PNG_COLOR_TYPE_GRAY && depth == 16) {
        std::memset(out, in[0] ? 255 : in[1], 3);
      } else if (gray) {
        std::memset(out, in[0] * scale, 3);
      } else {
        out[0] = in[0], out[1] = in[step], out[2] = in[2 * step];
      }
    }
  }
};

/// Reads through `samples`, which holds one row, or all rows of an interlaced file.
bool read_pixels(Reader& reader, const RowConverter& convert, std::uint8_t* samples,
                 std::size_t row_bytes, Image& image) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_packing(reader.png);
  const int passes = png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  for (int pass = 1; pass <= passes; ++pass)
    for (std::int64_t y = 0; y < image.height; ++y) {
      std::uint8_t* row = samples + (passes > 1 ? y * row_bytes : 0);
      png_read_row(reader.png, row, nullptr);
      if (pass == passes) convert(row, image.width, image.rgb.data() + 3 * y * image.width);
    }
  png_read_end(reader.png, nullptr);
  return true;
}

void check(const Source& source, const Reader& reader, bool ok) {
  if (!ok) source.fail("cannot read as PNG: ", reader.message);
}

void read_header(Reader& reader, const Source& source) {
  reader.rest = source.bytes;
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error,
                                      [](png_structp, png_const_charp) {});
  if (reader.png) reader.info = png_create_info_struct(reader.png);
  check(source, reader, reader.info && read_info(reader));
}

/// Bytes of a row as read_pixels() keeps it: a byte or two a sample.
std::size_t row_bytes(const Reader& reader) {
  return std::size_t{png_get_image_width(reader.png, reader.info)} *
         png_get_channels(reader.png, reader.info) *
         (png_get_bit_depth(reader.png, reader.info) == 16 ? 2 : 1);
}

/// Rows that read_pixels() keeps: one, or all of an interlaced file.
std::size_t rows_kept(const Reader& reader) {
  const bool interlaced = png_get_interlace_type(reader.png, reader.info) != PNG_INTERLACE_NONE;
  return interlaced ? png_get_image_height(reader.png, reader.info) : 1;
}

Size png_size(const Source& source) {
  Reader reader;
  read_header(reader, source);
  const std::int64_t width = png_get_image_width(reader.png, reader.info),
                     height = png_get_image_height(reader.png, reader.info);
  // One side is 2^31 at most, a row 8 bytes a pixel: the product would not always fit.
  const bool absurd = width > kMaxSide || height > kMaxSide;
  return {width, height,
          absurd ? 0 : static_cast<std::int64_t>(row_bytes(reader) * rows_kept(reader))};
}

void decode_png(const Source& source, Image& image) {
  Reader reader;
  read_header(reader, source);
  RowConverter convert{
      png_get_color_type(reader.png, reader.info), png_get_bit_depth(reader.png, reader.info), {}};
  if (convert.type == PNG_COLOR_TYPE_PALETTE) {  // indices past its end are black
    png_colorp colours = nullptr;
    int count = 0;
    png_get_PLTE(reader.png, reader.info, &colours, &count);
    for (int i = 0; i < count; ++i) {
      convert.palette[i][0] = colours[i].red;
      convert.palette[i][1] = colours[i].green;
      convert.palette[i][2] = colours[i].blue;
    }
  }
  std::vector<std::uint8_t> samples(row_bytes(reader) * rows_kept(reader));
  check(source, reader, read_pixels(reader, convert, samples.data(), row_bytes(reader), image));
}

}  // namespace

// Deflate makes at most 1032 bytes of one, each of which may hold 8 pixels.
const Decoder kPng{"png", std::int64_t{8} * 1032,
                   [](std::string_view bytes) { return bytes.starts_with(kSignature); }, png_size,
                   decode_png};

}  // namespace llava::media
