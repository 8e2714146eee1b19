#include "llava/media/tiles.h"

#include "resample.h"

#include "llava/base/check.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace llava::media {
namespace {

using Size = std::pair<std::int64_t, std::int64_t>;  // width, height

/// Whether width * height is at most `limit`, without overflow. All are at least 1.
bool fits(std::int64_t width, std::int64_t height, std::int64_t limit) {
  return width <= limit / height;
}

/// Where a picture goes on an anyres canvas: its size there and its offset.
struct Placement {
  std::int64_t width, height, left, top;
};

/// Source: LLaVA, mm_utils.py, resize_and_pad_image; the ceil of an inexact double is part of it.
Placement place(std::int64_t width, std::int64_t height, Size grid) {
  const double scale_w = static_cast<double>(grid.first) / static_cast<double>(width);
  const double scale_h = static_cast<double>(grid.second) / static_cast<double>(height);
  const auto scaled = [](std::int64_t side, double scale, std::int64_t most) {
    return std::min(static_cast<std::int64_t>(std::ceil(static_cast<double>(side) * scale)), most);
  };
  Placement at{grid.first, grid.second, 0, 0};
  if (scale_w < scale_h)
    at.height = scaled(height, scale_w, grid.second);
  else
    at.width = scaled(width, scale_h, grid.first);
  at.left = (grid.first - at.width) / 2;
  at.top = (grid.second - at.height) / 2;
  return at;
}

/// The size after scaling the shortest edge. Source: transformers, image_transforms.py,
/// get_resize_output_image_size: an integer product, then truncation.
Size shortest_edge_size(std::int64_t width, std::int64_t height, std::int64_t edge) {
  return width <= height ? Size{edge, edge * height / width} : Size{edge * width / height, edge};
}

/// One axis of a center crop: pixels [first, first + count) land at `at`; the rest stays black.
/// Source: transformers, image_transforms.py, center_crop.
struct CropAxis {
  std::int64_t first, count, at;
};
CropAxis crop_axis(std::int64_t size, std::int64_t crop) {
  if (size >= crop) return {(size - crop) / 2, crop, 0};
  return {0, size, (crop - size + 1) / 2};
}

/// A picture on a canvas of one colour.
struct Canvas {
  const Image& image;
  std::int64_t width, height, left, top;
  Colour background;
};

/// Part of a picture, in pixels of the picture.
struct Rectangle {
  std::int64_t left, top, right, bottom;
};

/// Copies `from` into planes of bytes [3, side, side] with its corner at (x, y).
void write_planes(const Image& image, const Rectangle& from, std::int64_t x, std::int64_t y,
                  std::int64_t side, std::uint8_t* planes) {
  for (std::int64_t row = from.top; row < from.bottom; ++row, ++y) {
    const std::uint8_t* in = image.rgb.data() + 3 * (row * image.width + from.left);
    std::uint8_t* red = planes + y * side + x;
    std::uint8_t *green = red + side * side, *blue = green + side * side;
    for (std::int64_t column = 0; column < from.right - from.left; ++column, in += 3)
      red[column] = in[0], green[column] = in[1], blue[column] = in[2];
  }
}

/// Scales a canvas, crops its center and writes planes, as CLIP's processor does.
/// planes: [3, tile, tile], zero before.
void write_view(const Canvas& canvas, const Size& scaled, std::int64_t tile, std::uint8_t* planes) {
  const CropAxis x = crop_axis(scaled.first, tile), y = crop_axis(scaled.second, tile);
  const Image window = resample(
      canvas.image, {canvas.image.width, canvas.width, canvas.left, scaled.first, x.first, x.count},
      {canvas.image.height, canvas.height, canvas.top, scaled.second, y.first, y.count},
      Filter::bicubic, canvas.background);
  write_planes(window, {0, 0, window.width, window.height}, x.at, y.at, tile, planes);
}

Canvas bare_canvas(const Image& image) { return {image, image.width, image.height, 0, 0, {}}; }

/// Writes the tile whose corner is (left, top) of the canvas on which `image` is placed.
void write_grid_tile(const Image& image, const Placement& at, std::int64_t left, std::int64_t top,
                     std::int64_t tile, std::uint8_t* planes) {
  const Rectangle from{
      std::max(left - at.left, std::int64_t{0}), std::max(top - at.top, std::int64_t{0}),
      std::min(left + tile - at.left, image.width), std::min(top + tile - at.top, image.height)};
  if (from.left < from.right && from.top < from.bottom)
    write_planes(image, from, from.left + at.left - left, from.top + at.top - top, tile, planes);
}

Canvas square_canvas(const Image& image, const TilingConfig& config) {
  Canvas canvas = bare_canvas(image);
  canvas.width = canvas.height = std::max(image.width, image.height);
  canvas.left = (canvas.width - image.width) / 2;
  canvas.top = (canvas.height - image.height) / 2;
  for (int c = 0; c < 3; ++c)  // LLaVA, mm_utils.py, process_images: int(x * 255)
    canvas.background[c] =
        static_cast<std::uint8_t>(std::max(0.0, std::min(255.0, config.mean[c] * 255)));
  return canvas;
}

/// transformers' int(round(x, 7)): correctly rounded to seven decimals, then cut.
std::int64_t round_7_and_cut(double x) {
  char text[400];
  const auto end = std::to_chars(text, text + sizeof text, x, std::chars_format::fixed, 7).ptr;
  std::int64_t whole = 0;
  std::from_chars(text, end, whole);
  return whole;
}

/// Python's a // b of floats, which floors the exact quotient. Source: CPython,
/// Objects/floatobject.c, _float_div_mod.
std::int64_t python_floor_divide(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return static_cast<std::int64_t>(whole);
}

}  // namespace

Size best_grid(std::int64_t width, std::int64_t height, const TilingConfig& config) {
  expect(!config.pinpoints.empty(), Fault::data,
         "image_aspect_ratio is anyres but image_grid_pinpoints lists no grid");
  Size best;
  std::int64_t best_effective = 0, best_waste = std::numeric_limits<std::int64_t>::max();
  for (const auto& [first, second] : config.pinpoints) {
    const Size grid = config.height_first ? Size{second, first} : Size{first, second};
    expect(std::min(first, second) >= 1 && std::max(first, second) <= kMaxSide, Fault::data,
           "image_grid_pinpoints: ", first, ", ", second, " is out of range");
    const double scale = std::min(static_cast<double>(grid.first) / static_cast<double>(width),
                                  static_cast<double>(grid.second) / static_cast<double>(height));
    const auto scaled_width = static_cast<std::int64_t>(static_cast<double>(width) * scale);
    const auto scaled_height = static_cast<std::int64_t>(static_cast<double>(height) * scale);
    const auto effective = std::min(scaled_width * scaled_height, width * height);
    const auto waste = grid.first * grid.second - effective;
    if (effective > best_effective || (effective == best_effective && waste < best_waste))
      best = grid, best_effective = effective, best_waste = waste;
  }
  return best;
}

TileShape tile_shape(std::int64_t width, std::int64_t height, const TilingConfig& config) {
  expect(width >= 1 && height >= 1 && width <= kMaxSide && height <= kMaxSide, Fault::data,
         "an image of ", width, "x", height, " pixels is out of range");
  const auto most = std::max(config.tile, config.shortest_edge);
  expect(std::min(config.tile, config.shortest_edge) >= 1 && fits(most, most, config.max_pixels),
         Fault::data, "tiles of ", config.tile, " pixels, shortest edge ", config.shortest_edge,
         ": out of range; check preprocessor_config.json");
  TileShape shape{width, height};
  if (config.aspect == Aspect::pad) {
    const auto side = std::max(width, height);
    expect(fits(side, side, config.max_pixels), Fault::data, "an image of ", width, "x", height,
           " padded to a square has more than ", config.max_pixels,
           " pixels; crop it or leave it out");
  }
  if (config.aspect == Aspect::anyres) {
    expect(config.tile == config.shortest_edge, Fault::data, "anyres with tiles of ", config.tile,
           " pixels needs the shortest edge ", config.shortest_edge,
           " to be equal; check preprocessor_config.json");
    const auto [grid_width, grid_height] = best_grid(width, height, config);
    expect(grid_width >= config.tile && grid_height >= config.tile &&
               grid_width % config.tile == 0 && grid_height % config.tile == 0,
           Fault::data, "image_grid_pinpoints: ", grid_width, "x", grid_height,
           " is no whole number of tiles of ", config.tile, " pixels");
    shape.grid_width = grid_width / config.tile;
    shape.grid_height = grid_height / config.tile;
    const auto tile_pixels = config.tile * config.tile;
    expect(fits(shape.grid_width, shape.grid_height, config.max_pixels / tile_pixels - 1),
           Fault::data, "image_grid_pinpoints: ", grid_width, "x", grid_height, " is more than ",
           config.max_pixels, " pixels");
  }
  return shape;
}

Tiles make_tiles(const Image& image, const TilingConfig& config) {
  Tiles tiles{tile_shape(image.width, image.height, config), config.tile, {}};
  const std::int64_t tile_bytes = 3 * config.tile * config.tile;
  tiles.pixels.resize(tiles.shape.tiles() * tile_bytes);
  std::uint8_t* out = tiles.pixels.data();
  if (config.aspect != Aspect::anyres) {
    const Canvas canvas =
        config.aspect == Aspect::pad ? square_canvas(image, config) : bare_canvas(image);
    write_view(canvas, shortest_edge_size(canvas.width, canvas.height, config.shortest_edge),
               config.tile, out);
    return tiles;
  }
  // The base view: the whole picture squashed, its proportions lost.
  write_view(bare_canvas(image), {config.tile, config.tile}, config.tile, out);
  const Size grid = best_grid(image.width, image.height, config);
  const Placement at = place(image.width, image.height, grid);
  const Image placed = resize(image, at.width, at.height);
  for (std::int64_t top = 0; top < grid.second; top += config.tile)
    for (std::int64_t left = 0; left < grid.first; left += config.tile)
      write_grid_tile(placed, at, left, top, config.tile, out += tile_bytes);
  return tiles;
}

std::array<std::array<float, 256>, 3> normalization_table(const TilingConfig& config) {
  std::array<std::array<float, 256>, 3> table;
  for (int c = 0; c < 3; ++c) {
    const auto mean = static_cast<float>(config.mean[c]),
               deviation = static_cast<float>(config.std[c]);
    expect(std::isfinite(mean) && std::isfinite(deviation) && deviation > 0, Fault::data,
           "image_mean ", mean, ", image_std ", deviation,
           ": out of range; check "
           "preprocessor_config.json");
    for (int byte = 0; byte < 256; ++byte)
      table[c][byte] = (static_cast<float>(byte * (1.0 / 255.0)) - mean) / deviation;
  }
  return table;
}

Crop unpadded(const TileShape& shape, const MergeConfig& config) {
  const std::int64_t rows = shape.grid_height * config.side,
                     columns = shape.grid_width * config.side;
  Crop crop{0, rows, 0, columns};
  if (!config.unpad || rows == 0 || columns == 0) return crop;
  const auto width = static_cast<double>(shape.image_width);
  const auto height = static_cast<double>(shape.image_height);
  const auto whole = [&](double x) {
    return config.hugging_face ? round_7_and_cut(x) : static_cast<std::int64_t>(x);
  };
  // Source: LLaVA, llava_arch.py, unpad_image: cuts the same number on both sides.
  if (width / height > static_cast<double>(columns) / static_cast<double>(rows)) {
    crop.top = (rows - whole(height * (static_cast<double>(columns) / width))) / 2;
    crop.bottom = rows - crop.top;
  } else {
    crop.left = (columns - whole(width * (static_cast<double>(rows) / height))) / 2;
    crop.right = columns - crop.left;
  }
  return crop;
}

Size merged_raster(const TileShape& shape, const MergeConfig& config) {
  const Crop crop = unpadded(shape, config);
  const std::int64_t rows = crop.bottom - crop.top, columns = crop.right - crop.left;
  if (!config.unpad || config.max_tiles <= 0) return {rows, columns};
  // Source: LLaVA-NeXT, llava_arch.py, prepare_inputs_labels_for_multimodal (anyres_max).
  const double times = std::sqrt(static_cast<double>(rows * columns) /
                                 static_cast<double>(config.max_tiles * config.side * config.side));
  if (!(times > 1.1)) return {rows, columns};
  return {python_floor_divide(static_cast<double>(rows), times),
          python_floor_divide(static_cast<double>(columns), times)};
}

std::int64_t image_rows(const TileShape& shape, const MergeConfig& config) {
  if (config.class_only) return shape.tiles();
  const std::int64_t tile_rows = config.side * config.side + config.class_token;
  if (!config.spatial) return shape.tiles() * tile_rows;
  if (shape.tiles() == 1) return tile_rows + config.unpad;
  const auto [rows, columns] = merged_raster(shape, config);
  return tile_rows + rows * (columns + config.unpad);
}

std::int64_t pooled_side(const MergeConfig& config) {
  const std::int64_t stride = std::max<std::int64_t>(config.video_stride, 1);
  const bool round_up = config.video_pool == MergeConfig::Pool::bilinear;
  return (config.side + (round_up ? stride - 1 : 0)) / stride;
}

std::int64_t video_rows(std::int64_t frames, const MergeConfig& config) {
  if (config.class_only) return frames;
  const std::int64_t side = pooled_side(config);
  switch (config.video_newline) {
    case MergeConfig::Newline::none: break;
    case MergeConfig::Newline::one: return frames * side * side + 1;
    case MergeConfig::Newline::frame: return frames * (side * side + 1);
    case MergeConfig::Newline::grid: return frames * side * (side + 1);
  }
  return frames * side * side;
}

}  // namespace llava::media
