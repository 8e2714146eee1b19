// One image -> square tiles of the vision tower's size, and the geometry that later turns the
// tiles' features into one sequence.
// Source: haotian-liu/LLaVA 1.2.2, mm_utils.py; LLaVA-VL/LLaVA-NeXT, mm_utils.py; transformers,
// image_processing_llava_next.py.
#pragma once

#include "llava/media/image.h"

#include <array>
#include <utility>

namespace llava::media {

/// image_aspect_ratio.
enum class Aspect {
  square,  // shortest edge to size, center crop
  pad,     // on a square canvas of the mean colour, then to size
  anyres   // base view and a grid of tiles
};

/// Everything preprocessing depends on; comes from a model's config files.
struct TilingConfig {
  Aspect aspect = Aspect::square;
  std::int64_t tile = 336;           // side of a tile, pixels
  std::int64_t shortest_edge = 336;  // what `square` resizes to before cropping
  std::array<double, 3> mean{0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> std{0.26862954, 0.26130258, 0.27577711};
  // Anyres grids in pixels, as the config lists them: pairs (width, height), which transformers
  // reads as (height, width). The order decides ties.
  std::vector<std::pair<std::int64_t, std::int64_t>> pinpoints;
  bool height_first = false;  // read pinpoints as transformers does
  // Limit on the padded canvas and on all tiles together, as Pillow's on one picture. The canvas is
  // never made: what it holds beside the picture is accounted for in the weights.
  std::int64_t max_pixels = 178'956'970;
};

/// Geometry of one image's tiles; what is needed to count and merge features.
struct TileShape {
  std::int64_t image_width = 0, image_height = 0;  // the original picture
  std::int64_t grid_width = 0, grid_height = 0;    // anyres: tiles across and down; else 0
  std::int64_t tiles() const { return 1 + grid_width * grid_height; }
};

/// Tiles as bytes, [tiles, 3, side, side] row-major; the base view first, then the grid row by row.
struct Tiles {
  TileShape shape;
  std::int64_t side = 0;
  std::vector<std::uint8_t> pixels;
};

/// The shape that `make_tiles` would give an image of this size.  Throws Error(data) if a limit is
/// exceeded or the config cannot be followed; the caller adds the image's name.
TileShape tile_shape(std::int64_t width, std::int64_t height, const TilingConfig& config);
Tiles make_tiles(const Image& image, const TilingConfig& config);

/// table[c][byte] = (byte/255 - mean[c]) / std[c] in float32, in the reference's order of
/// operations.
std::array<std::array<float, 256>, 3> normalization_table(const TilingConfig& config);

/// The grid (width, height in pixels) chosen for an image: the largest effective resolution, then
/// the least waste, then the first listed.  Throws Error(data) if no grid is listed.
std::pair<std::int64_t, std::int64_t> best_grid(std::int64_t width, std::int64_t height,
                                                const TilingConfig& config);

/// How the features of one image's tiles become one sequence (mm_patch_merge_type and friends).
struct MergeConfig {
  std::int64_t side = 24;         // features across one tile
  bool class_token = false;       // cls_patch: one more feature in front of each tile's
  bool class_only = false;        // the seed's sketch: the class token alone, one row an image
  bool spatial = false;           // re-order tiles to raster order (spatial, spatial_unpad)
  bool unpad = false;             // cut the padding away and end each row with the newline vector
  std::int64_t max_tiles = 0;     // anyres_max_N; 0: none
  std::int64_t video_stride = 2;  // pooling of video frames
  enum class Pool { average, max, bilinear } video_pool = Pool::average;
  bool pool_before_projector = true;  // LLaVA-NeXT-Video's release order
  enum class Newline { none, one, frame, grid } video_newline = Newline::none;
  // Differences of transformers' implementation from the reference, chosen by the folder's layout.
  bool hugging_face = false;
};

/// The part of the raster of features (all tiles of the grid, in place) that shows the picture:
/// rows [top, bottom), columns [left, right). May be empty for very thin pictures. The whole raster
/// unless config.unpad.
struct Crop {
  std::int64_t top = 0, bottom = 0, left = 0, right = 0;
};
Crop unpadded(const TileShape& shape, const MergeConfig& config);

/// Rows and columns of the raster as merged, without newlines: those of unpadded(), or fewer when
/// anyres_max_N asks to shrink it (bilinear, half-pixel centres, no antialias).
std::pair<std::int64_t, std::int64_t> merged_raster(const TileShape& shape,
                                                    const MergeConfig& config);

/// Features across one pooled video frame.
std::int64_t pooled_side(const MergeConfig& config);

/// Rows of the merged sequence of an image, and of a video of `frames` frames (one tile each).
std::int64_t image_rows(const TileShape& shape, const MergeConfig& config);
std::int64_t video_rows(std::int64_t frames, const MergeConfig& config);

}  // namespace llava::media
