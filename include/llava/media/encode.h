// Images -> files: the two formats that this library itself makes pictures in.
#pragma once

#include "llava/media/image.h"

namespace llava::media {

/// Bytes of a baseline JPEG, 4:2:0, of quality 1 to 100.
std::string encode_jpeg(const Image& image, int quality = 90);

/// Bytes of an 8-bit RGB PNG.
std::string encode_png(const Image& image);

}  // namespace llava::media
