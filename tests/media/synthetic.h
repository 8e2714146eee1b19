// The picture that the recorded digests of resampling and tiling were made from.
#pragma once

#include "llava/media/image.h"

namespace llava::media {

/// P(x,y,c) = (floor((x^2 + 3y^2 + 7xy) / 32) + 40c + 11x) mod 256.
inline Image synthetic(std::int64_t width, std::int64_t height) {
  Image image{width, height, {}};
  image.rgb.reserve(3 * width * height);
  for (std::int64_t y = 0; y < height; ++y)
    for (std::int64_t x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        image.rgb.push_back(
            static_cast<std::uint8_t>((x * x + 3 * y * y + 7 * x * y) / 32 + 40 * c + 11 * x));
  return image;
}

}  // namespace llava::media
