#include "llava/media/resize.h"

#include "resample.h"

#include "llava/base/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace llava::media {
namespace {

double bicubic(double x) {  // Keys with a = -0.5; Resample.c, bicubic_filter, in its Horner order
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double bilinear(double x) {
  x = std::abs(x);
  return x < 1 ? 1 - x : 0;
}

std::uint8_t to_byte(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

constexpr std::int32_t kHalf = 1 << (kWeightBits - 1);

std::int32_t fixed_point(double weight) {  // half away from zero
  return static_cast<std::int32_t>(weight * (1 << kWeightBits) + (weight < 0 ? -0.5 : 0.5));
}

void across_plain(const std::uint8_t* const* source, std::uint8_t* const* target, int rows,
                  const Taps& taps, const Colour& background) {
  for (int row = 0; row < rows; ++row) {
    std::uint8_t* out = target[row];
    for (std::int64_t i = 0; i < taps.outputs(); ++i, out += 3) {
      const std::uint8_t* in = source[row] + 3 * taps.begin[i];
      const std::int32_t* weights = taps.weights.data() + i * taps.stride;
      std::int32_t red = kHalf + taps.background_weight[i] * background[0];
      std::int32_t green = kHalf + taps.background_weight[i] * background[1];
      std::int32_t blue = kHalf + taps.background_weight[i] * background[2];
      for (std::int32_t j = 0; j < taps.count[i]; ++j, in += 3) {
        red += in[0] * weights[j];
        green += in[1] * weights[j];
        blue += in[2] * weights[j];
      }
      out[0] = to_byte(red), out[1] = to_byte(green), out[2] = to_byte(blue);
    }
  }
}

void down_plain(const std::uint8_t* source, std::int64_t stride, const std::int32_t* weights,
                std::int64_t count, const std::array<std::int32_t, 3>& start, std::uint8_t* target,
                std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) {
    std::int32_t sum = start[i % 3];
    for (std::int64_t t = 0; t < count; ++t) sum += source[t * stride + i] * weights[t];
    target[i] = to_byte(sum);
  }
}

/// Rows of the picture after the first pass, made when asked for and kept while the second pass may
/// need them: memory and cache hold a few rows, however tall the picture is.
class NarrowRows {
 public:
  NarrowRows(const Kernels& kernels, const Image& image, const Taps& columns,
             const Colour& background, std::int64_t most)
      : stride((3 * columns.outputs() + kRoom + 31) / 32 * 32),
        kernels_(kernels),
        image_(image),
        columns_(columns),
        background_(background),
        capacity_(2 * most + kRows),
        rows_(capacity_ * stride + 32),
        copies_(kRows * (3 * image.width + kRoom)) {}

  const std::int64_t stride;  // bytes from one row to the next

  /// Rows [begin, end) of the picture. Neither bound may ever go back.
  const std::uint8_t* rows(std::int64_t begin, std::int64_t end) {
    if (end > first_ + capacity_) drop(begin);
    while (first_ + ready_ < end) {
      const auto count =
          std::min({std::int64_t{kRows}, capacity_ - ready_, image_.height - first_ - ready_});
      make(static_cast<int>(count));
    }
    return rows_.data() + (begin - first_) * stride;
  }

 private:
  static constexpr std::int64_t kRoom = 16;  // that the loops may read past a row

  void drop(std::int64_t begin) {
    const auto gone = std::min(begin - first_, ready_);
    std::memmove(rows_.data(), rows_.data() + gone * stride, (ready_ - gone) * stride);
    ready_ -= gone;
    first_ = begin;
  }

  void make(int count) {
    const std::int64_t bytes = 3 * image_.width;
    const std::uint8_t* source[kRows];
    std::uint8_t* target[kRows];
    for (int r = 0; r < count; ++r, ++ready_) {
      const std::int64_t row = first_ + ready_;
      source[r] = image_.rgb.data() + row * bytes;
      target[r] = rows_.data() + ready_ * stride;
      // Reading past a row meets the next one; where the picture ends there is a copy.
      if ((image_.height - row - 1) * bytes >= kRoom) continue;
      std::uint8_t* copy = copies_.data() + r * (bytes + kRoom);
      std::memcpy(copy, source[r], bytes);
      source[r] = copy;
    }
    kernels_.across(source, target, count, columns_, background_);
  }

  const Kernels& kernels_;
  const Image& image_;
  const Taps& columns_;
  const Colour& background_;
  std::int64_t capacity_, first_ = 0, ready_ = 0;
  std::vector<std::uint8_t> rows_, copies_;
};

}  // namespace

Taps make_taps(const Axis& axis, Filter filter) {
  const double scale = static_cast<double>(axis.canvas) / static_cast<double>(axis.scaled);
  const double stretch = std::max(scale, 1.0);   // antialias when shrinking only
  const bool same = axis.canvas == axis.scaled;  // Pillow copies
  const double support = (filter == Filter::bicubic ? 2.0 : 1.0) * stretch;
  Taps taps;
  const auto most = same ? 1 : static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  taps.stride = (std::min(most, axis.size) + 3) / 4 * 4;
  taps.begin.resize(axis.count);
  taps.count.resize(axis.count);
  taps.background_weight.resize(axis.count);
  taps.weights.resize(axis.count * taps.stride);
  std::vector<double> weights;
  for (std::int64_t i = 0; i < axis.count; ++i) {
    const double centre = (static_cast<double>(axis.first + i) + 0.5) * scale;
    auto low = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
    auto high = std::min(static_cast<std::int64_t>(centre + support + 0.5), axis.canvas);
    if (same) low = axis.first + i, high = low + 1;
    weights.resize(high - low);
    double sum = 0;
    for (std::int64_t j = 0; j < high - low; ++j) {
      const double x = (static_cast<double>(j + low) - centre + 0.5) * (1.0 / stretch);
      weights[j] = filter == Filter::bicubic ? bicubic(x) : bilinear(x);
      sum += weights[j];
    }
    if (sum != 0)
      for (double& weight : weights) weight /= sum;
    // Taps that fall beside the picture meet the background: their weights add up.
    const auto inside_low = std::clamp(low - axis.offset, std::int64_t{0}, axis.size);
    const auto inside_high = std::clamp(high - axis.offset, inside_low, axis.size);
    for (std::int64_t j = 0; j < high - low; ++j) {
      const auto at = low + j - axis.offset;
      if (at >= inside_low && at < inside_high)
        taps.weights[i * taps.stride + at - inside_low] = fixed_point(weights[j]);
      else
        taps.background_weight[i] += fixed_point(weights[j]);
    }
    taps.begin[i] = static_cast<std::int32_t>(inside_low);
    taps.count[i] = static_cast<std::int32_t>(inside_high - inside_low);
  }
  return taps;
}

const Kernels& plain_kernels() {
  static constexpr Kernels kernels{across_plain, down_plain};
  return kernels;
}

Image resample_with(const Kernels& kernels, const Image& image, const Axis& x, const Axis& y,
                    Filter filter, const Colour& background) {
  const Taps columns = make_taps(x, filter), rows = make_taps(y, filter);
  const std::int64_t bytes = 3 * x.count;
  Image result{x.count, y.count, std::vector<std::uint8_t>(bytes * y.count)};
  NarrowRows narrow(kernels, image, columns, background, rows.stride);
  for (std::int64_t i = 0; i < rows.outputs(); ++i) {
    std::array<std::int32_t, 3> start;
    for (int c = 0; c < 3; ++c) start[c] = kHalf + rows.background_weight[i] * background[c];
    const std::uint8_t* source =
        rows.count[i] > 0 ? narrow.rows(rows.begin[i], rows.begin[i] + rows.count[i]) : nullptr;
    kernels.down(source, narrow.stride, rows.weights.data() + i * rows.stride, rows.count[i], start,
                 result.rgb.data() + i * bytes, bytes);
  }
  return result;
}

Image resample(const Image& image, const Axis& x, const Axis& y, Filter filter,
               const Colour& background) {
  const Kernels* fast = vector_kernels();
  return resample_with(fast ? *fast : plain_kernels(), image, x, y, filter, background);
}

Image resize(const Image& image, std::int64_t width, std::int64_t height, Filter filter) {
  expect(width >= 1 && height >= 1 && image.width >= 1 && image.height >= 1, Fault::usage,
         "cannot resize an image of ", image.width, "x", image.height, " to ", width, "x", height,
         ": each side must be at least 1 pixel");
  return resample(image, whole_axis(image.width, width), whole_axis(image.height, height), filter,
                  {});
}

}  // namespace llava::media
