#include "llava/model/image_features.h"

#include "llava/base/check.h"

namespace llava::model {
namespace {

using torch::Tensor;

/// The patches of tiles [N, P0, W] as squares, without class tokens: [N, side, side, W].
Tensor squares(const Tensor& tiles, std::int64_t side) {
  const auto patches = side * side;
  expect(tiles.size(1) >= patches, Fault::data, "a tile has ", tiles.size(1),
         " features, but the grid of ", side, "x", side, " patches needs ", patches,
         "; is image_size or patch_size of vision_config wrong?");
  return tiles.slice(1, tiles.size(1) - patches)
      .reshape({tiles.size(0), side, side, tiles.size(2)});
}

/// A raster [rows, columns, D] scaled to another size; half-pixel centres, no antialias.
Tensor scaled(const Tensor& raster, std::int64_t rows, std::int64_t columns) {
  const auto planes = raster.permute({2, 0, 1}).unsqueeze(0);  // [1, D, rows, columns]
  return torch::upsample_bilinear2d(planes, {rows, columns}, /*align_corners=*/false)
      .squeeze(0)
      .permute({1, 2, 0});
}

}  // namespace

torch::Tensor merge_tiles(const torch::Tensor& tiles, const media::TileShape& shape,
                          const media::MergeConfig& config, const torch::Tensor& newline) {
  if (config.class_only || !config.spatial) return tiles.flatten(0, 1);
  expect(!config.unpad || newline.defined(), Fault::data,
         "the model merges tiles with a newline vector but has no image_newline tensor");
  const auto D = tiles.size(2);
  const auto base = tiles[0];  // [P0, D]
  if (tiles.size(0) == 1)
    return config.unpad ? torch::cat({base, newline.to(base.dtype()).view({1, D})}) : base;

  const auto side = config.side;
  auto raster = squares(tiles.slice(0, 1), side)  // [gh * gw, side, side, D]
                    .view({shape.grid_height, shape.grid_width, side, side, D})
                    .transpose(1, 2)
                    .reshape({shape.grid_height * side, shape.grid_width * side, D});
  const auto crop = media::unpadded(shape, config);
  raster = raster.slice(0, crop.top, crop.bottom).slice(1, crop.left, crop.right);
  const auto [rows, columns] = media::merged_raster(shape, config);
  if (rows != raster.size(0) || columns != raster.size(1)) raster = scaled(raster, rows, columns);
  if (config.unpad)
    raster = torch::cat({raster, newline.to(raster.dtype()).expand({rows, 1, D})}, 1);
  return torch::cat({base, raster.flatten(0, 1)});
}

torch::Tensor pool_frames(const torch::Tensor& frames, const media::MergeConfig& config) {
  if (config.class_only) return frames;
  const auto planes = squares(frames, config.side).permute({0, 3, 1, 2});  // [N, W, side, side]
  const auto stride = config.video_stride, p = media::pooled_side(config);
  Tensor pooled;  // [N, W, p, p]
  switch (config.video_pool) {
    case media::MergeConfig::Pool::average:
      pooled = torch::avg_pool2d(planes, {stride, stride}, {stride, stride});
      break;
    case media::MergeConfig::Pool::max:
      pooled = torch::max_pool2d(planes, {stride, stride}, {stride, stride});
      break;
    case media::MergeConfig::Pool::bilinear:
      pooled = torch::upsample_bilinear2d(planes, {p, p}, /*align_corners=*/false);
      break;
  }
  return pooled.flatten(2).transpose(1, 2);
}

torch::Tensor merge_frames(const torch::Tensor& frames, const media::MergeConfig& config,
                           const torch::Tensor& newline) {
  using Newline = media::MergeConfig::Newline;
  if (config.class_only || config.video_newline == Newline::none) return frames.flatten(0, 1);
  expect(newline.defined(), Fault::data,
         "the model marks video frames with a newline vector but has no image_newline tensor");
  const auto N = frames.size(0), p = media::pooled_side(config), D = frames.size(2);
  const auto mark = newline.to(frames.dtype());
  switch (config.video_newline) {
    case Newline::none: break;
    case Newline::one: return torch::cat({frames.flatten(0, 1), mark.view({1, D})});
    case Newline::frame: return torch::cat({frames, mark.expand({N, 1, D})}, 1).flatten(0, 1);
    case Newline::grid:
      return torch::cat({frames.reshape({N, p, p, D}), mark.expand({N, p, 1, D})}, 2).flatten(0, 2);
  }
  return frames.flatten(0, 1);
}

}  // namespace llava::model
