#include "llava/model/image_features.h"

#include "support/expect_error.h"

namespace llava {
namespace {

using torch::Tensor;

/// Tiles of side x side features whose numbers say where they come from: 100 * tile + row-major.
Tensor numbered(std::int64_t tiles, std::int64_t side) {
  auto values = torch::arange(side * side, torch::kFloat32).expand({tiles, side * side}).clone();
  for (std::int64_t i = 0; i < tiles; ++i) values[i] += 100.0 * static_cast<double>(i);
  return values.unsqueeze(-1);  // [N, side * side, 1]
}

std::vector<float> flat(const Tensor& x) {
  const auto y = x.contiguous().to(torch::kFloat32);
  return {y.const_data_ptr<float>(), y.const_data_ptr<float>() + y.numel()};
}

const Tensor kNewline = torch::full({1}, -1.0f);

media::MergeConfig merge(std::int64_t side) {
  media::MergeConfig config;
  config.side = side;
  return config;
}

TEST(MergeTiles, FlatPutsTilesOneAfterTheOther) {
  EXPECT_THAT(flat(model::merge_tiles(numbered(2, 1), {10, 10, 1, 1}, merge(1), {})),
              testing::ElementsAre(0, 100));
}

// Two tiles side by side of 2 x 2: the raster's first row is 100 101 200 201.
TEST(MergeTiles, SpatialReadsTheWholePictureRowByRow) {
  auto config = merge(2);
  config.spatial = true;
  const media::TileShape shape{56, 28, 2, 1};
  EXPECT_THAT(flat(model::merge_tiles(numbered(3, 2), shape, config, {})),
              testing::ElementsAre(0, 1, 2, 3, 100, 101, 200, 201, 102, 103, 202, 203));
}

// A grid of 1 x 2 tiles (2 x 4 features) for a picture of 28 x 112: half the width is padding.
TEST(MergeTiles, UnpadCutsPaddingAndEndsRowsWithTheNewline) {
  auto config = merge(2);
  config.spatial = config.unpad = true;
  const media::TileShape shape{14, 56, 1, 2};
  EXPECT_THAT(flat(model::merge_tiles(numbered(3, 2), shape, config, kNewline)),
              testing::ElementsAre(0, 1, 2, 3,  // base
                                   100, 101, -1, 102, 103, -1, 200, 201, -1, 202, 203, -1));
  const media::TileShape wide{112, 28, 2, 2};  // 4 x 4 features, of which 1 row is the picture
  const auto rows = model::merge_tiles(numbered(5, 2), wide, config, kNewline);
  EXPECT_EQ(rows.size(0), media::image_rows(wide, config));
  EXPECT_THAT(flat(rows.slice(0, 4)), testing::ElementsAre(102, 103, 202, 203, -1,  //
                                                           300, 301, 400, 401, -1));
}

TEST(MergeTiles, OneTileGetsOneNewline) {
  auto config = merge(1);
  config.spatial = config.unpad = true;
  EXPECT_THAT(flat(model::merge_tiles(numbered(1, 1), {10, 10, 0, 0}, config, kNewline)),
              testing::ElementsAre(0, -1));
}

// anyres_max_1 of 4 x 4 features in tiles of 2 x 2 halves the raster; bilinear halving is a mean.
TEST(MergeTiles, CapShrinksTheRaster) {
  auto config = merge(2);
  config.spatial = config.unpad = true;
  config.max_tiles = 1;
  const media::TileShape shape{56, 56, 2, 2};
  const auto rows = model::merge_tiles(numbered(5, 2), shape, config, kNewline);
  EXPECT_EQ(rows.size(0), media::image_rows(shape, config));
  EXPECT_THAT(flat(rows.slice(0, 4)), testing::ElementsAre(101.5, 201.5, -1, 301.5, 401.5, -1));
}

TEST(MergeTiles, ClassTokenStaysWithTheBaseViewAlone) {
  auto config = merge(1);
  config.spatial = config.unpad = config.class_token = true;
  const auto tiles = torch::tensor({7.0f, 0.0f, 8.0f, 100.0f}).view({2, 2, 1});
  EXPECT_THAT(flat(model::merge_tiles(tiles, {10, 10, 1, 1}, config, kNewline)),
              testing::ElementsAre(7, 0, 100, -1));
}

TEST(MergeTiles, MissingNewlineIsAnError) {
  auto config = merge(1);
  config.spatial = config.unpad = true;
  support::error_of(Fault::data, [&] {
    model::merge_tiles(numbered(1, 1), {1, 1, 0, 0}, config, {});
  });
}

TEST(PoolFrames, AveragesMaximaAndInterpolates) {
  auto config = merge(2);
  config.video_stride = 2;
  EXPECT_THAT(flat(model::pool_frames(numbered(2, 2), config)), testing::ElementsAre(1.5, 101.5));
  config.video_pool = media::MergeConfig::Pool::max;
  EXPECT_THAT(flat(model::pool_frames(numbered(2, 2), config)), testing::ElementsAre(3, 103));
  config.video_pool = media::MergeConfig::Pool::bilinear;
  EXPECT_THAT(flat(model::pool_frames(numbered(1, 2), config)), testing::ElementsAre(1.5));
  EXPECT_EQ(model::pool_frames(numbered(1, 3), merge(3)).size(1), 1);  // average drops the rest
  auto odd = merge(3);
  odd.video_pool = media::MergeConfig::Pool::bilinear;
  EXPECT_EQ(model::pool_frames(numbered(1, 3), odd).size(1), 4);  // rounded up
}

TEST(MergeFrames, PutsNewlinesWhereTheyBelong) {
  using Newline = media::MergeConfig::Newline;
  auto config = merge(4);
  config.video_stride = 2;
  const auto frames = numbered(2, 2);
  const auto merged = [&](Newline newline) {
    config.video_newline = newline;
    const auto rows = model::merge_frames(frames, config, kNewline);
    EXPECT_EQ(rows.size(0), media::video_rows(2, config));
    return flat(rows);
  };
  EXPECT_THAT(merged(Newline::none), testing::ElementsAre(0, 1, 2, 3, 100, 101, 102, 103));
  EXPECT_THAT(merged(Newline::one), testing::ElementsAre(0, 1, 2, 3, 100, 101, 102, 103, -1));
  EXPECT_THAT(merged(Newline::frame), testing::ElementsAre(0, 1, 2, 3, -1, 100, 101, 102, 103, -1));
  EXPECT_THAT(merged(Newline::grid),
              testing::ElementsAre(0, 1, -1, 2, 3, -1, 100, 101, -1, 102, 103, -1));
}

}  // namespace
}  // namespace llava
