// A case of tests/golden/model: a model folder with inputs and what transformers computed for them.
#pragma once

#include "llava/base/config.h"
#include "llava/model/pretrained.h"
#include "llava/weights/state_dict.h"

#include <string>

namespace llava::test {

struct ParityCase {
  explicit ParityCase(const std::string& folder)
      : expected(weights::load_file(folder + "/case.safetensors")),
        model(model::load_pretrained(folder).model) {
    const auto info = read_json(folder + "/case.json");
    batch.ids = expected.at("ids").clone();
    batch.labels = batch.ids.clone();
    batch.starts = info["starts"].get<std::vector<std::int64_t>>();
    starts = info["spliced_starts"].get<std::vector<std::int64_t>>();
    dtype = info["dtype"].get<std::string>();
    if (expected.contains("tiles")) batch.tiles = expected.at("tiles").clone();
    const auto* ids = batch.ids.const_data_ptr<std::int64_t>();
    std::int64_t slot = 0;
    for (const auto& item : info["pictures"]) {
      while (ids[slot] != input::kImageToken) ++slot;
      input::PictureSpan picture;
      picture.first_tile = item["first_tile"];
      picture.slot = slot++;
      picture.frames = item["frames"];
      picture.shape = media::tile_shape(item["width"], item["height"], model->config.tiling);
      picture.rows = picture.frames > 0 ? media::video_rows(picture.frames, model->config.merge)
                                        : media::image_rows(picture.shape, model->config.merge);
      planned_rows.push_back(item["rows"]);
      batch.pictures.push_back(picture);
    }
  }

  /// Logits [T, V] of all rows in one batch.
  torch::Tensor logits() {
    torch::NoGradGuard no_grad;
    const auto spliced = model->embed(batch);
    return model->logits(model->llama(spliced.embeds, spliced.starts));
  }

  weights::StateDict expected;
  model::Llava model;
  input::Batch batch;
  std::vector<std::int64_t> starts, planned_rows;
  std::string dtype;
};

/// Largest absolute difference.
inline double distance(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).abs().max().item<double>();
}

/// Largest difference over the largest value.
inline double relative_distance(const torch::Tensor& a, const torch::Tensor& b) {
  return distance(a, b) / b.to(torch::kFloat64).abs().max().item<double>();
}

}  // namespace llava::test
