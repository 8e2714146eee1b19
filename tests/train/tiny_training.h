// Tiny models, pictures and batches that the tests of training share.
#pragma once

#include "llava/base/config.h"
#include "llava/input/batch.h"
#include "support/digests.h"
#include "support/tiny_model.h"

#include <string>
#include <vector>

namespace llava::train::test {

/// Values from the name alone, as scripts/make_goldens_train.py makes them: norms near 1, the rest
/// within +-0.3.
inline void fill_by_name(const std::string& name, torch::Tensor& weight) {
  const std::uint64_t seed = static_cast<std::uint64_t>(support::crc32(name)) << 32;
  const bool is_norm = name.find("norm") != std::string::npos && name.ends_with("weight");
  auto values = torch::empty({weight.numel()}, torch::kFloat32);
  for (std::int64_t i = 0; i < weight.numel(); ++i) {
    std::uint64_t x = seed + static_cast<std::uint64_t>(i);  // splitmix64's output function
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    x ^= x >> 31;
    const double value = (static_cast<double>(x >> 40) / (1 << 24) - 0.5) * 0.6;
    values.data_ptr<float>()[i] = static_cast<float>(is_norm ? 1 + value / 3 : value);
  }
  torch::NoGradGuard no_grad;
  weight.copy_(values.view(weight.sizes()));
}

inline model::Llava model_by_name(const std::string& projector,
                                  torch::ScalarType dtype = torch::kFloat32) {
  auto config = llava::test::tiny_config();
  config.projector_type = projector;
  model::Llava model(config, torch::TensorOptions(dtype));
  for (auto& item : model->named_parameters()) fill_by_name(item.key(), item.value());
  return model;
}

/// Picture `number`: one tile of 28 x 28 pixels, four rows.
inline input::Picture picture_of(std::int64_t number) {
  input::Picture picture;
  picture.shape = {28, 28, 0, 0};
  picture.rows = 4;
  picture.side = 28;
  for (std::int64_t j = 0; j < 3 * 28 * 28; ++j)
    picture.pixels.push_back(static_cast<std::uint8_t>((j * 37 + j / 251 + 11 * number) % 256));
  return picture;
}

/// A row of tests/golden/train/batches.json: [ids, number of last tokens that are learned].
inline input::Example example_of(const Json& row, std::int64_t& next_picture) {
  input::Example example;
  example.ids = row[0].get<std::vector<std::int64_t>>();
  example.labels.assign(example.ids.size(), input::kIgnore);
  const auto learned = row[1].get<std::size_t>();
  std::copy(example.ids.end() - static_cast<std::ptrdiff_t>(learned), example.ids.end(),
            example.labels.end() - static_cast<std::ptrdiff_t>(learned));
  for (const auto id : example.ids)
    if (id == input::kImageToken) example.pictures.push_back(picture_of(next_picture++));
  example.id = "row " + std::to_string(next_picture);
  return example;
}

inline std::vector<std::vector<input::Example>> golden_examples() {
  std::vector<std::vector<input::Example>> batches;
  std::int64_t picture = 0;
  for (const auto& batch : read_json(LLAVA_GOLDEN "/batches.json")) {
    auto& examples = batches.emplace_back();
    for (const auto& row : batch) examples.push_back(example_of(row, picture));
  }
  return batches;
}

}  // namespace llava::train::test
