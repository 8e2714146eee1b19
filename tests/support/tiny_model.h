// A tiny seeded LLaVA for tests: 2 layers, width 16, vocabulary 64, tiles of 28 pixels in patches
// of 14 (2 x 2 patches), in milliseconds on a CPU.
#pragma once

#include "llava/model/llava.h"

namespace llava::test {

inline model::LlavaConfig tiny_config() {
  model::LlavaConfig config;
  config.vision = {.hidden_size = 16,
                   .intermediate_size = 32,
                   .num_hidden_layers = 2,
                   .num_attention_heads = 2,
                   .image_size = 28,
                   .patch_size = 14,
                   .projection_dim = 16};
  config.text.vocab_size = 64;
  config.text.hidden_size = 16;
  config.text.intermediate_size = 32;
  config.text.num_hidden_layers = 2;
  config.text.num_attention_heads = 4;
  config.text.num_key_value_heads = 2;
  config.text.head_dim = 4;
  config.text.max_position_embeddings = 128;
  config.text.bos_token_id = 1;
  config.text.eos_token_ids = {2};
  config.tiling.tile = config.tiling.shortest_edge = 28;
  config.tiling.aspect = media::Aspect::pad;
  config.merge.side = 2;
  return config;
}

/// With initial values from `seed`, spread wide enough that every part matters to the result.
inline model::Llava tiny_model(const model::LlavaConfig& config = tiny_config(),
                               std::uint64_t seed = 1, torch::ScalarType dtype = torch::kFloat32) {
  model::Llava model(config, torch::TensorOptions(dtype));
  model::initialize(model, seed);
  torch::NoGradGuard no_grad;
  for (auto& item : model->llama->named_parameters())
    if (item.value().dim() == 2) item.value().mul_(5);
  if (model->lm_head) model->lm_head->weight.mul_(5);
  return model;
}

}  // namespace llava::test
