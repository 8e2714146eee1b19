// The engine behind resize() and make_tiles(): resamples a window of a picture that may stand on a
// larger canvas of one colour, without ever making that canvas. Each output pixel depends on its
// own taps only, so that a window equals the same window of the whole result, to the bit.
// Source: python-pillow/Pillow 10.3, src/libImaging/Resample.c.
#pragma once

#include "llava/media/resize.h"

#include <array>
#include <cstdint>
#include <vector>

namespace llava::media {

/// One axis: `size` pixels of the picture stand `offset` pixels into a canvas; the canvas is scaled
/// to `scaled` pixels, of which [first, first + count) are wanted.
struct Axis {
  std::int64_t size, canvas, offset, scaled, first, count;
};

/// The axis of a plain resize.
inline Axis whole_axis(std::int64_t size, std::int64_t scaled) {
  return {size, size, 0, scaled, 0, scaled};
}

using Colour = std::array<std::uint8_t, 3>;

/// The window as an image of x.count by y.count pixels; `background` is the canvas's colour.
Image resample(const Image& image, const Axis& x, const Axis& y, Filter filter,
               const Colour& background);

/// For each output pixel of an axis: out = sum of picture[begin + j] * weights[j] over its taps,
/// plus background * background_weight, in fixed point with kWeightBits fractional bits.
struct Taps {
  std::vector<std::int32_t> begin, count, background_weight;  // [outputs]
  std::vector<std::int32_t> weights;                          // [outputs, stride]
  std::int64_t stride = 0;                                    // a multiple of 4; unused ones are 0
  std::int64_t outputs() const { return static_cast<std::int64_t>(begin.size()); }
};

inline constexpr int kWeightBits = 32 - 8 - 2;

Taps make_taps(const Axis& axis, Filter filter);

/// The two inner loops, once in plain C++ and once for AVX2; same bytes.
struct Kernels {
  /// Rows of packed RGB -> their outputs. Source rows need 16 readable bytes after their end,
  /// target rows 4 writable ones; `rows` is at most kRows.
  void (*across)(const std::uint8_t* const* source, std::uint8_t* const* target, int rows,
                 const Taps& taps, const Colour& background);
  /// target[i] = sum of source[t * stride + i] * weights[t] + start[i % 3], i < bytes.
  void (*down)(const std::uint8_t* source, std::int64_t stride, const std::int32_t* weights,
               std::int64_t count, const std::array<std::int32_t, 3>& start, std::uint8_t* target,
               std::int64_t bytes);
};
inline constexpr int kRows = 4;

const Kernels& plain_kernels();
/// nullptr where the processor or the build has none.
const Kernels* vector_kernels();

/// resample() with chosen loops.
Image resample_with(const Kernels& kernels, const Image& image, const Axis& x, const Axis& y,
                    Filter filter, const Colour& background);

}  // namespace llava::media
