// JPEG through libjpeg-turbo with its defaults: accurate integer DCT, fancy upsampling.
// Verdicts on damaged files follow Pillow 10.3, JpegDecode.c: data that ends early is an error,
// other damage that libjpeg repairs with a warning is not.
#include "source.h"

#include <jerror.h>
#include <jpeglib.h>
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <vector>

namespace llava::media {
namespace {

// A progressive file may hold any number of scans, each of which costs a pass over the picture.
constexpr int kMaxScans = 100;  // as in libjpeg-turbo's own fuzzers; encoders write 10 or so

struct Reader {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr input;
  jpeg_progress_mgr progress;
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr common) {
  auto* reader = static_cast<Reader*>(common->client_data);
  common->err->format_message(common, reader->message);
  std::longjmp(reader->escape, 1);
}

void skip(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  jpeg_source_mgr& input = *info->src;
  const auto step = std::min(static_cast<std::size_t>(count), input.bytes_in_buffer);
  input.next_input_byte += step;
  input.bytes_in_buffer -= step;
}

void limit_scans(j_common_ptr common) {
  if (reinterpret_cast<j_decompress_ptr>(common)->input_scan_number <= kMaxScans) return;
  auto* reader = static_cast<Reader*>(common->client_data);
  std::snprintf(reader->message, sizeof reader->message, "more than %d scans", kMaxScans);
  std::longjmp(reader->escape, 1);
}

/// The memory is all there is: asking for more means the data ended.
boolean no_more(j_decompress_ptr) { return FALSE; }

void open(Reader& reader, std::string_view bytes) {
  reader.info.err = jpeg_std_error(&reader.errors);
  reader.info.client_data = &reader;
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = [](j_common_ptr, int) {};
  reader.errors.output_message = [](j_common_ptr) {};
  jpeg_create_decompress(&reader.info);
  reader.input = {};
  reader.input.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
  reader.input.bytes_in_buffer = bytes.size();
  reader.input.init_source = [](j_decompress_ptr) {};
  reader.input.fill_input_buffer = no_more;
  reader.input.skip_input_data = skip;
  reader.input.resync_to_restart = jpeg_resync_to_restart;
  reader.input.term_source = [](j_decompress_ptr) {};
  reader.info.src = &reader.input;
  reader.progress = {};
  reader.progress.progress_monitor = limit_scans;
  reader.info.progress = &reader.progress;
}

constexpr char kEndsEarly[] = "the data ends early";

/// Only plain data lives in the frames between setjmp and longjmp. Returns nullptr or a message
/// that lives in `reader`.
const char* read_size(Reader& reader, std::string_view bytes) {
  if (setjmp(reader.escape)) return reader.message;
  open(reader, bytes);
  return jpeg_read_header(&reader.info, TRUE) == JPEG_HEADER_OK ? nullptr : kEndsEarly;
}

const char* read_pixels(Reader& reader, std::uint8_t* pixels, std::size_t row_bytes) {
  if (setjmp(reader.escape)) return reader.message;
  if (!jpeg_start_decompress(&reader.info)) return kEndsEarly;
  while (reader.info.output_scanline < reader.info.output_height) {
    JSAMPROW row = pixels + reader.info.output_scanline * row_bytes;
    if (jpeg_read_scanlines(&reader.info, &row, 1) == 0) return kEndsEarly;
  }
  return jpeg_finish_decompress(&reader.info) ? nullptr : kEndsEarly;
}

/// Destroys what open() made, whatever happens.
struct Open {
  Reader reader;
  const Source& source;
  explicit Open(const Source& s) : source(s) {
    reader.info = {};
    check(read_size(reader, source.bytes));
    const int components = reader.info.num_components;
    if (components != 1 && components != 3 && components != 4)
      check("it has neither 1, 3 nor 4 components");
  }
  ~Open() { jpeg_destroy_decompress(&reader.info); }
  void check(const char* message) const {
    if (message) source.fail("cannot read as JPEG: ", message);
  }
};

/// c * (255 - k) / 255 as Pillow rounds it. Source: Pillow, Convert.c, cmyk2rgb.
std::uint8_t without_black(int ink, int black) {
  const int white = 255 - black, product = ink * white + 128;
  return static_cast<std::uint8_t>(std::clamp(white - ((product + (product >> 8)) >> 8), 0, 255));
}

Size jpeg_size(const Source& source) {
  const Open jpeg(source);
  return {jpeg.reader.info.image_width, jpeg.reader.info.image_height};
}

void decode_jpeg(const Source& source, Image& image) {
  Open jpeg(source);
  Reader& reader = jpeg.reader;
  if (reader.info.num_components != 4) {
    reader.info.out_color_space = JCS_RGB;
    return jpeg.check(read_pixels(reader, image.rgb.data(), 3 * image.width));
  }
  reader.info.out_color_space = JCS_CMYK;
  std::vector<std::uint8_t> inks(4 * image.width * image.height);
  jpeg.check(read_pixels(reader, inks.data(), 4 * image.width));
  // Stored inverted, as Adobe does; Pillow assumes it of every file.
  const std::uint8_t* in = inks.data();
  for (std::size_t i = 0; i < image.rgb.size(); i += 3, in += 4)
    for (int c = 0; c < 3; ++c) image.rgb[i + c] = without_black(255 - in[c], 255 - in[3]);
}

}  // namespace

const Decoder kJpeg{"jpeg",
                    [](std::string_view bytes) { return bytes.starts_with("\xff\xd8\xff"); },
                    jpeg_size, decode_jpeg};

}  // namespace llava::media
