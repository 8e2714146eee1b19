// Pillow-exact resampling on bytes (Pillow <= 12.1: horizontal pass first).
// Source: python-pillow/Pillow, src/libImaging/Resample.c.
#pragma once

#include "llava/media/image.h"

namespace llava::media {

enum class Filter { bicubic, bilinear };

/// The image at a new size, both at least 1.  Throws Error(usage) for others, and for an image
/// without pixels.
Image resize(const Image& image, std::int64_t width, std::int64_t height,
             Filter filter = Filter::bicubic);

}  // namespace llava::media
