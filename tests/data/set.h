// Training sets written into a temporary folder, for tests of folder data.
#pragma once

#include "llava/base/config.h"
#include "llava/data/records.h"
#include "llava/input/encoder.h"
#include "support/temporary_folder.h"

#include <filesystem>

namespace llava::data {

/// A sample with alternating turns.
inline Json sample(const std::string& id, const std::vector<std::string>& turns,
                   const Json& image = nullptr) {
  Json json{{"id", id}};
  if (!image.is_null()) json["image"] = image;
  json["conversations"] = Json::array();
  for (std::size_t i = 0; i < turns.size(); ++i)
    json["conversations"].push_back({{"from", i % 2 ? "gpt" : "human"}, {"value", turns[i]}});
  return json;
}

/// A binary PPM of one colour.
inline std::string ppm(int width, int height, int color = 100) {
  return "P6 " + std::to_string(width) + " " + std::to_string(height) + " 255\n" +
         std::string(static_cast<std::size_t>(3 * width * height), static_cast<char>(color));
}

/// Llama's vocabulary and Vicuna's template on tiles of 28 pixels, 4 rows each.
inline const input::Encoder& small_encoder() {
  static const input::Encoder encoder = [] {
    const support::TemporaryFolder folder;
    std::filesystem::copy_file(LLAVA_GOLDEN "/../text/tokenizer.model", folder / "tokenizer.model");
    input::EncoderConfig config;
    config.tiling.aspect = media::Aspect::pad;
    config.tiling.tile = config.tiling.shortest_edge = 28;
    config.merge.side = 2;
    return input::Encoder(text::Tokenizer::load(folder.path()), text::find_template("v1"), config);
  }();
  return encoder;
}

}  // namespace llava::data
