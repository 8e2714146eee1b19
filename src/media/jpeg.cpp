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
constexpr int kMaxScans = 64;  // encoders write 10 or so

struct Reader {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr input;
  jpeg_progress_mgr progress;
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];

  Reader() : info{} {}
  Reader(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&info); }
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

/// c * (255 - k) / 255 as Pillow rounds it. Source: Pillow, Convert.c, cmyk2rgb.
std::uint8_t without_black(int ink, int black) {
  const int white = 255 - black, product = ink * white + 128;
  return static_cast<std::uint8_t>(std::clamp(white - ((product + (product >> 8)) >> 8), 0, 255));
}

/// Four inks, stored inverted as Adobe does and Pillow assumes of every file, -> RGB.
void mix_inks(const std::uint8_t* inks, std::int64_t width, std::uint8_t* rgb) {
  for (std::int64_t x = 0; x < width; ++x, inks += 4, rgb += 3)
    for (int c = 0; c < 3; ++c) rgb[c] = without_black(255 - inks[c], 255 - inks[3]);
}

/// `inks` holds one row of a file with four components and is null for others.
const char* read_pixels(Reader& reader, std::uint8_t* rgb, std::uint8_t* inks) {
  if (setjmp(reader.escape)) return reader.message;
  jpeg_decompress_struct& info = reader.info;
  info.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  if (!jpeg_start_decompress(&info)) return kEndsEarly;
  while (info.output_scanline < info.output_height) {
    std::uint8_t* target = rgb + std::size_t{3} * info.output_width * info.output_scanline;
    JSAMPROW row = inks ? inks : target;
    if (jpeg_read_scanlines(&info, &row, 1) == 0) return kEndsEarly;
    if (inks) mix_inks(inks, info.output_width, target);
  }
  return jpeg_finish_decompress(&info) ? nullptr : kEndsEarly;
}

void check(const Source& source, const char* message) {
  if (message) source.fail("cannot read as JPEG: ", message);
}

void read_header(Reader& reader, const Source& source) {
  check(source, read_size(reader, source.bytes));
  const int components = reader.info.num_components;
  source.expect(components == 1 || components == 3 || components == 4, "the JPEG has ", components,
                " components, not 1, 3 or 4");
}

/// What libjpeg keeps of a picture in several scans: all its coefficients, two bytes each.
std::int64_t coefficient_bytes(jpeg_decompress_struct& info) {
  if (!jpeg_has_multiple_scans(&info)) return 0;
  std::int64_t blocks = 0;
  for (int c = 0; c < info.num_components; ++c) {
    const auto& part = info.comp_info[c];
    blocks += std::int64_t{part.width_in_blocks + part.h_samp_factor} *
              (part.height_in_blocks + part.v_samp_factor);
  }
  return blocks * DCTSIZE2 * static_cast<std::int64_t>(sizeof(JCOEF));
}

Size jpeg_size(const Source& source) {
  Reader reader;
  read_header(reader, source);
  return {reader.info.image_width, reader.info.image_height, coefficient_bytes(reader.info)};
}

void decode_jpeg(const Source& source, Image& image) {
  Reader reader;
  read_header(reader, source);
  std::vector<std::uint8_t> inks(reader.info.num_components == 4 ? 4 * image.width : 0);
  check(source, read_pixels(reader, image.rgb.data(), inks.empty() ? nullptr : inks.data()));
}

}  // namespace

// A picture costs at least 1 bit for each 64 pixels, arithmetic coding aside: 512 pixels a byte.
const Decoder kJpeg{"jpeg", 4096,
                    [](std::string_view bytes) { return bytes.starts_with("\xff\xd8\xff"); },
                    jpeg_size, decode_jpeg};

}  // namespace llava::media
