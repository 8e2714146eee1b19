#include "llava/media/encode.h"

#include "llava/base/check.h"

#include <cstdio>
#include <cstdlib>

#include <jpeglib.h>
#include <png.h>

namespace llava::media {

std::string encode_jpeg(const Image& image, int quality) {
  jpeg_compress_struct job{};
  jpeg_error_mgr errors{};
  job.err = jpeg_std_error(&errors);  // cannot fail: memory destination, valid parameters
  jpeg_create_compress(&job);
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&job, &buffer, &size);
  job.image_width = static_cast<JDIMENSION>(image.width);
  job.image_height = static_cast<JDIMENSION>(image.height);
  job.input_components = 3;
  job.in_color_space = JCS_RGB;
  jpeg_set_defaults(&job);
  jpeg_set_quality(&job, quality, TRUE);
  jpeg_start_compress(&job, TRUE);
  while (job.next_scanline < job.image_height) {
    auto* row = const_cast<JSAMPROW>(image.rgb.data() + std::size_t{3} * job.next_scanline *
                                                            static_cast<std::size_t>(image.width));
    jpeg_write_scanlines(&job, &row, 1);
  }
  jpeg_finish_compress(&job);
  std::string bytes(reinterpret_cast<char*>(buffer), size);
  std::free(buffer);
  jpeg_destroy_compress(&job);
  return bytes;
}

std::string encode_png(const Image& image) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  bool ok = png_image_write_get_memory_size(header, size, 0, image.rgb.data(), 0, nullptr) != 0;
  std::string bytes(size, '\0');
  ok = ok &&
       png_image_write_to_memory(&header, bytes.data(), &size, 0, image.rgb.data(), 0, nullptr);
  expect(ok, Fault::failure, "a PNG could not be made: ", header.message);
  bytes.resize(size);
  return bytes;
}

}  // namespace llava::media
