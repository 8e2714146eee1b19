#include "parts.h"

#include "llava/base/files.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>

namespace llava::model {
namespace {

namespace fs = std::filesystem;

/// `size` or `crop_size`: a number, {"shortest_edge": n} or {"height": n, "width": n}.
std::int64_t read_edge(const Keys& keys, const char* key, std::int64_t otherwise) {
  const auto* json = keys.find(key);
  if (!json) return otherwise;
  if (!json->is_object()) return keys.size(key, otherwise, 8192);
  const Keys edges(*json, keys.where(key));
  if (edges.has("shortest_edge")) return edges.size("shortest_edge", otherwise, 8192);
  expect(edges.has("height") && edges.has("width"), Fault::data, edges.where(),
         ": needs \"shortest_edge\", or \"height\" and \"width\"");
  const auto height = edges.size("height", otherwise, 8192);
  expect(height == edges.size("width", otherwise, 8192), Fault::data, edges.where(),
         ": only square tiles are supported");
  return height;
}

std::array<double, 3> read_colour(const Keys& keys, const char* key,
                                  const std::array<double, 3>& otherwise) {
  const auto* json = keys.find(key);
  if (!json) return otherwise;
  std::array<double, 3> colour;
  const bool is_list = json->is_array() && json->size() == 3;
  for (std::size_t c = 0; c < 3; ++c) {
    expect(is_list && (*json)[c].is_number(), Fault::data, keys.where(key),
           ": expected a list of three numbers");
    colour[c] = (*json)[c].get<double>();
  }
  return colour;
}

/// preprocessor_config.json, or what stands in processor_config.json in its place; null: neither.
Json preprocessor_json(const std::string& folder, std::string& where) {
  where = folder + "/preprocessor_config.json";
  if (is_file(where)) {
    auto json = read_json(where);
    expect(json.is_object(), Fault::data, where, ": expected an object");
    return json;
  }
  where = folder + "/processor_config.json";
  if (is_file(where)) {
    auto json = read_json(where);
    if (json.is_object() && json.contains("image_processor")) {
      where += ": \"image_processor\"";
      return json["image_processor"];
    }
  }
  return nullptr;
}

using Grids = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// "(1x1),...,(6x6)": all grids between the first and the last pair, times the tile.
/// Source: LLaVA-VL/LLaVA-NeXT, mm_utils.py, process_anyres_image.
std::optional<Grids> grids_of_range(const std::string& text, std::int64_t tile) {
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (std::isdigit(static_cast<unsigned char>(text[i])) == 0) continue;
    const auto begin = i;
    while (i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0) ++i;
    if (i - begin > 3) return std::nullopt;
    numbers.push_back(std::stoll(text.substr(begin, i - begin)));
  }
  if (numbers.size() < 4 || text.find('x') == std::string::npos) return std::nullopt;
  const auto n = numbers.size();
  Grids grids;
  for (auto i = numbers[0]; i <= numbers[n - 2]; ++i)
    for (auto j = numbers[1]; j <= numbers[n - 1]; ++j) grids.emplace_back(i * tile, j * tile);
  return grids;
}

}  // namespace

bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool read_preprocessor(const std::string& folder, const ClipVisionConfig& vision,
                       media::TilingConfig& tiling) {
  tiling.tile = tiling.shortest_edge = vision.image_size;
  std::string where;
  const auto json = preprocessor_json(folder, where);
  if (json.is_null()) return false;
  const Keys keys(json, where);
  for (const auto* step : {"do_resize", "do_center_crop", "do_rescale", "do_normalize"})
    expect(keys.get<bool>(step, true), Fault::data, keys.where(step),
           " is false; preprocessing without this step is not supported");
  expect(keys.get<std::int64_t>("resample", 3) == 3, Fault::data, keys.where("resample"),
         ": only 3 (bicubic) is supported");
  expect(std::abs(keys.get<double>("rescale_factor", 1 / 255.0) * 255 - 1) < 1e-6, Fault::data,
         keys.where("rescale_factor"), ": only 1/255 is supported");
  tiling.shortest_edge = read_edge(keys, "size", tiling.shortest_edge);
  tiling.tile = read_edge(keys, "crop_size", tiling.tile);
  tiling.mean = read_colour(keys, "image_mean", tiling.mean);
  tiling.std = read_colour(keys, "image_std", tiling.std);
  for (const double deviation : tiling.std)
    expect(deviation > 1e-6, Fault::data, keys.where("image_std"), ": ", deviation,
           " is out of range; CLIP's are 0.26 to 0.28");
  expect(tiling.tile == vision.image_size, Fault::data, keys.where("crop_size"), " is ",
         tiling.tile, " but the vision tower takes tiles of ", vision.image_size, " pixels");
  const auto type = keys.get<std::string>("image_processor_type", "");
  const bool pads = type.starts_with("LlavaImageProcessor") && keys.get<bool>("do_pad", false);
  const auto* size = keys.find("size");
  const bool squashes = size && size->is_object() && !size->contains("shortest_edge");
  expect(!squashes || pads || type.starts_with("LlavaNext"), Fault::data, keys.where("size"),
         ": squashing a picture to a square is not supported; name a \"shortest_edge\"");
  return pads;
}

Grids read_grids(const Keys& keys, std::int64_t tile) {
  const auto* json = keys.find("image_grid_pinpoints");
  if (!json) return {};
  const auto where = keys.where("image_grid_pinpoints");
  Json list = *json;
  if (list.is_string()) {
    auto text = list.get<std::string>();
    if (const auto grids = grids_of_range(text, tile)) return *grids;
    std::replace(text.begin(), text.end(), '(', '[');
    std::replace(text.begin(), text.end(), ')', ']');
    list = parse_json(text, where);
  }
  expect(list.is_array() && list.size() <= 4096, Fault::data, where,
         ": expected a list of pairs of pixels");
  Grids grids;
  for (const auto& pair : list) {
    const bool is_pair = pair.is_array() && pair.size() == 2 && pair[0].is_number_integer() &&
                         pair[1].is_number_integer();
    expect(is_pair, Fault::data, where, ": expected a list of pairs of pixels, found ",
           pair.dump().substr(0, 80));
    grids.emplace_back(pair[0].get<std::int64_t>(), pair[1].get<std::int64_t>());
    const auto [width, height] = grids.back();
    expect(width >= tile && height >= tile && width % tile == 0 && height % tile == 0 &&
               width <= kLargestSize && height <= kLargestSize,
           Fault::data, where, ": ", width, "x", height, " is no whole number of tiles of ", tile,
           " pixels");
  }
  return grids;
}

Json grids_for(const LlavaConfig& config, bool height_first) {
  Json list = Json::array();
  for (auto [first, second] : config.tiling.pinpoints) {
    if (config.tiling.height_first != height_first) std::swap(first, second);
    list.push_back({first, second});
  }
  return list;
}

Json preprocessor_config(const LlavaConfig& config) {
  const auto& tiling = config.tiling;
  const bool is_anyres = tiling.aspect == media::Aspect::anyres;
  const bool pads = tiling.aspect == media::Aspect::pad;
  // transformers' CLIP processor cuts the centre out; LLaVA's own pads to a square if told so.
  Json json{{"image_processor_type", is_anyres ? "LlavaNextImageProcessor"
                                     : pads    ? "LlavaImageProcessor"
                                               : "CLIPImageProcessor"},
            {"processor_class", config.is_video ? "LlavaNextVideoProcessor"
                                : is_anyres     ? "LlavaNextProcessor"
                                                : "LlavaProcessor"},
            {"do_convert_rgb", true},
            {"do_resize", true},
            {"size", {{"shortest_edge", tiling.shortest_edge}}},
            {"resample", 3},
            {"do_center_crop", true},
            {"crop_size", {{"height", tiling.tile}, {"width", tiling.tile}}},
            {"do_rescale", true},
            {"rescale_factor", 1.0 / 255.0},
            {"do_normalize", true},
            {"image_mean", tiling.mean},
            {"image_std", tiling.std}};
  if (pads || is_anyres) json["do_pad"] = true;
  if (is_anyres) {
    json["aspect_ratio_setting"] = "anyres";
    json["image_grid_pinpoints"] = grids_for(config, /*height_first=*/true);
  }
  return json;
}

}  // namespace llava::model
