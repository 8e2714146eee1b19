#include "self_test.h"

#include "llava/model/llava.h"
#include "llava/train/optimizer.h"

#include <cmath>

namespace llava::cli {
namespace {

model::LlavaConfig tiny_config() {
  model::LlavaConfig config;
  config.vision.hidden_size = 32;
  config.vision.intermediate_size = 64;
  config.vision.num_hidden_layers = 2;
  config.vision.num_attention_heads = 2;
  config.vision.image_size = 28;
  config.text.vocab_size = 64;
  config.text.hidden_size = 32;
  config.text.intermediate_size = 64;
  config.text.num_hidden_layers = 2;
  config.text.num_attention_heads = 4;
  config.text.num_key_value_heads = 2;
  config.text.head_dim = 8;
  config.tiling.tile = config.tiling.shortest_edge = 28;
  config.merge.side = 2;
  return config;
}

/// Two conversations about two striped pictures, all numbers by a simple rule.
input::Batch striped_batch(const model::LlavaConfig& config) {
  std::vector<input::Example> examples;
  for (int which = 0; which < 2; ++which) {
    input::Picture picture;
    picture.shape = media::TileShape{28, 28, 0, 0};
    picture.side = 28;
    picture.rows = media::image_rows(picture.shape, config.merge);
    for (int i = 0; i < 3 * 28 * 28; ++i)
      picture.pixels.push_back(static_cast<std::uint8_t>((i * (7 + 4 * which)) % 256));
    input::Example example;
    example.id = std::to_string(which);
    example.ids = {1, input::kImageToken};
    for (int i = 0; i < 10; ++i) example.ids.push_back(3 + (i * i + 5 * which) % 61);
    example.labels = example.ids;
    example.labels[0] = example.labels[1] = input::kIgnore;
    example.pictures.push_back(std::move(picture));
    examples.push_back(std::move(example));
  }
  return input::collate(examples);
}

// What LibTorch 2.11 gives; instruction sets change only digits beyond the tolerance.
constexpr double kExpectedLoss = 0.6165;
constexpr double kTolerance = 2e-3;

}  // namespace

SelfTest self_test() {
  const auto config = tiny_config();
  model::Llava model(config, torch::TensorOptions().dtype(torch::kFloat32));
  model::initialize(model, /*seed=*/1);
  train::ParameterGroup group{"all", 1e-3, 0.0, {}};
  for (auto& item : model->named_parameters())
    if (item.key().rfind("vision", 0) != 0) {
      group.parameters.emplace_back(item.key(), item.value());
    } else {
      item.value().set_requires_grad(false);
    }
  train::Optimizer optimizer({group}, train::OptimizerConfig{});
  const auto batch = striped_batch(config);
  SelfTest result;
  for (int step = 0; step <= 20; ++step) {
    const auto loss = model->loss(batch);
    (step == 0 ? result.first_loss : result.last_loss) = loss.item<double>();
    loss.backward();
    optimizer.step(/*rate_factor=*/1, optimizer.gradient_norm(), /*skip=*/torch::zeros({}));
    optimizer.zero_grad();
  }
  result.expected_loss = kExpectedLoss;
  result.passed = std::abs(result.last_loss - kExpectedLoss) < kTolerance;
  return result;
}

}  // namespace llava::cli
