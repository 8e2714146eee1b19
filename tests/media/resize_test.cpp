#include "llava/media/resize.h"

#include "../src/media/resample.h"
#include "synthetic.h"

#include "support/digests.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>
#include <numeric>
#include <random>

namespace llava::media {
namespace {

using support::bytes_of;
using support::crc32;
using ::testing::ElementsAre;

Image gray(std::int64_t width, std::int64_t height, const std::vector<int>& values) {
  Image image{width, height, {}};
  for (const int value : values)
    for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<std::uint8_t>(value));
  return image;
}

std::vector<int> red(const Image& image) {
  std::vector<int> values;
  for (std::size_t i = 0; i < image.rgb.size(); i += 3) values.push_back(image.rgb[i]);
  return values;
}

// Every row was recorded from Pillow 9.4.0, 10.3.0 and 12.1 (equal), by resizing the synthetic
// picture with BICUBIC.
TEST(Resize, EqualsPillowOnTheSyntheticPicture) {
  struct Row {
    std::int64_t width, height, to_width, to_height;
    std::uint32_t source, result;
    std::int64_t sum;
  };
  constexpr Row kRows[] = {
      {4, 3, 7, 5, 0xb65f7d4e, 0xac317f1e, 5966},
      {7, 5, 4, 3, 0xb846c63f, 0x3dd69616, 2688},
      {16, 16, 5, 16, 0x3fedb684, 0x4b8f47c6, 30980},
      {16, 16, 16, 5, 0x3fedb684, 0x051306c0, 30784},
      {640, 480, 448, 336, 0x3f16b66f, 0x09425b1c, 57557976},
      {640, 480, 336, 336, 0x3f16b66f, 0xd7660b2e, 43172245},
      {100, 1000, 101, 1008, 0x0a2a3307, 0x9d957ac0, 38940476},
      {500, 375, 672, 505, 0xce5e8550, 0x1e59398f, 129785370},
      {1000, 667, 503, 336, 0xe3b31f30, 0xe5d896d7, 64626395},
      {50, 37, 454, 336, 0xeaba7eb9, 0xd82a1a12, 58191209},
      {1, 1, 336, 336, 0xc977264c, 0x97e0629e, 13547520},
      {2, 3, 336, 336, 0x9344c310, 0x185e4ba8, 15432480},
      {3, 1, 9, 1, 0x82ba3e1e, 0x8b0078b8, 1378},
      {8, 1000, 16, 336, 0x542325ae, 0x89ced789, 2053385},  // Pillow <= 12.1
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(::testing::Message() << row.width << "x" << row.height);
    const Image image = synthetic(row.width, row.height);
    EXPECT_EQ(crc32(bytes_of(image.rgb)), row.source);
    const Image result = resize(image, row.to_width, row.to_height);
    EXPECT_EQ(result.width, row.to_width);
    EXPECT_EQ(result.height, row.to_height);
    EXPECT_EQ(crc32(bytes_of(result.rgb)), row.result);
    EXPECT_EQ(std::accumulate(result.rgb.begin(), result.rgb.end(), std::int64_t{0}), row.sum);
  }
}

TEST(Resize, WeightsEqualTheWorkedExamples) {
  const auto weights = [](std::int64_t size, std::int64_t scaled, std::int64_t output) {
    const Taps taps = make_taps(whole_axis(size, scaled), Filter::bicubic);
    const auto* begin = taps.weights.data() + output * taps.stride;
    return std::make_pair(taps.begin[output],
                          std::vector<std::int32_t>(begin, begin + taps.count[output]));
  };
  using Weights = std::vector<std::int32_t>;
  EXPECT_EQ(weights(5, 3, 0), std::make_pair(0, Weights{2452055, 1871305, 0, -129056}));
  EXPECT_EQ(weights(5, 3, 1),
            std::make_pair(0, Weights{-156067, 1033945, 2438549, 1033945, -156067}));
  EXPECT_EQ(weights(5, 3, 2), std::make_pair(1, Weights{-129056, 0, 1871305, 2452055}));
  EXPECT_EQ(weights(640, 448, 0), std::make_pair(0, Weights{2903499, 1509605, -215166, -3634}));
  EXPECT_EQ(weights(640, 448, 224),
            std::make_pair(318, Weights{-163350, 337150, 2783186, 1447051, -206250, -3483}));
  EXPECT_EQ(weights(640, 448, 447), std::make_pair(636, Weights{-3634, -215166, 1509605, 2903499}));
  EXPECT_EQ(weights(100, 336, 0), std::make_pair(0, Weights{4648420, -454116}));
  EXPECT_EQ(weights(100, 336, 1), std::make_pair(0, Weights{4298149, -103845}));
  EXPECT_EQ(weights(100, 336, 335), std::make_pair(98, Weights{-454116, 4648420}));
}

TEST(Resize, RoundsAndClampsBetweenThePasses) {
  EXPECT_THAT(red(resize(gray(5, 1, {10, 200, 30, 250, 90}), 3, 1)), ElementsAre(87, 125, 158));
  EXPECT_THAT(red(resize(gray(3, 1, {0, 255, 0}), 5, 1)), ElementsAre(0, 101, 255, 101, 0));
  EXPECT_THAT(red(resize(gray(3, 3, {0, 255, 0, 255, 0, 255, 0, 255, 0}), 5, 5)),
              ElementsAre(0, 97, 255, 97, 0, 101, 122, 154, 122, 101, 255, 154, 0, 154, 255, 101,
                          122, 154, 122, 101, 0, 97, 255, 97, 0));
  EXPECT_THAT(
      red(resize(gray(4, 4, {0, 0, 255, 255, 0, 255, 255, 0, 255, 0, 0, 255, 10, 20, 30, 40}), 2,
                 3)),
      ElementsAre(55, 215, 135, 127, 36, 50));
}

TEST(Resize, RefusesSizesWithoutPixels) {
  for (const auto& [image, width] : {std::pair{synthetic(4, 3), 0}, std::pair{Image{}, 5}})
    EXPECT_THAT(support::error_of(Fault::usage, [&] { resize(image, width, 5); }),
                ::testing::HasSubstr("each side must be at least 1 pixel"));
}

// A slow restatement without windows, canvases, or shortcuts.
Image slow_resample(const Image& image, const Axis& x, const Axis& y, Filter filter,
                    const Colour& background) {
  Image canvas{x.canvas, y.canvas, {}};
  for (std::int64_t i = 0; i < x.canvas * y.canvas; ++i)
    canvas.rgb.insert(canvas.rgb.end(), background.begin(), background.end());
  for (std::int64_t row = 0; row < image.height; ++row)
    for (std::int64_t i = 0; i < 3 * image.width; ++i)
      canvas.rgb[3 * ((y.offset + row) * x.canvas + x.offset) + i] =
          image.rgb[3 * row * image.width + i];
  const Image whole = resize(canvas, x.scaled, y.scaled, filter);
  Image window{x.count, y.count, {}};
  for (std::int64_t row = 0; row < y.count; ++row) {
    const auto begin = whole.rgb.begin() + 3 * ((y.first + row) * x.scaled + x.first);
    window.rgb.insert(window.rgb.end(), begin, begin + 3 * x.count);
  }
  return window;
}

TEST(Resample, EveryPathGivesTheSameBytes) {
  std::mt19937 random(7);
  const auto pick = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  for (int round = 0; round < 150; ++round) {
    Image image{pick(1, 90), pick(1, 90), {}};
    const bool binary = round % 3 == 0;  // the strongest overshoot
    for (std::int64_t i = 0; i < 3 * image.width * image.height; ++i)
      image.rgb.push_back(static_cast<std::uint8_t>(binary ? 255 * pick(0, 1) : pick(0, 255)));
    const auto axis = [&](std::int64_t size) {
      Axis axis{size, size, 0, pick(1, 120), 0, 0};
      if (round % 2) axis.canvas += axis.offset = pick(0, 40), axis.canvas += pick(0, 40);
      axis.first = pick(0, axis.scaled - 1);
      axis.count = pick(1, axis.scaled - axis.first);
      return axis;
    };
    const Axis x = axis(image.width), y = axis(image.height);
    const Filter filter = round % 5 ? Filter::bicubic : Filter::bilinear;
    const Colour background{122, 0, 255};
    const Image plain = resample_with(plain_kernels(), image, x, y, filter, background);
    EXPECT_EQ(plain.rgb, slow_resample(image, x, y, filter, background).rgb) << round;
    if (const Kernels* fast = vector_kernels()) {
      EXPECT_EQ(plain.rgb, resample_with(*fast, image, x, y, filter, background).rgb) << round;
    }
  }
}

}  // namespace
}  // namespace llava::media
