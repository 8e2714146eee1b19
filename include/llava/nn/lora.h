// LoRA on chosen Linears.  Source: "LoRA: Low-Rank Adaptation of Large Language Models", section
// 4.1; initial values, scale and names as huggingface/peft, tuners/lora/layer.py.
#pragma once

#include "llava/nn/linear.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace llava::nn {

struct LoraConfig {
  std::int64_t r = 128;
  double alpha = 256;
  double dropout = 0.05;
  bool rslora = false;  // scale by alpha / sqrt(r) instead of alpha / r

  double scale() const;
};

/// All Linears of a module (LoRA pairs not among them), by dotted name, in registration order.
std::vector<std::pair<std::string, Linear>> named_linears(torch::nn::Module& root);

/// Gives a Linear a trainable pair: A random (Kaiming-uniform from `seed`), B zero, so that the
/// output is unchanged. Throws Error(usage) if it has one already. The weight is not frozen here.
void attach_lora(Linear& linear, const LoraConfig& config, std::uint64_t seed,
                 std::optional<torch::ScalarType> dtype = {});

/// Attaches to every Linear whose name is chosen, each with its own seed; returns how many.
std::int64_t attach_lora(torch::nn::Module& root,
                         const std::function<bool(const std::string&)>& is_chosen,
                         const LoraConfig& config, std::uint64_t seed);

/// W += scale * B A (in fp32, then rounded to W's type) and drops the pair; without one, nothing.
void merge_lora(Linear& linear);

/// Merges all pairs of a module; returns how many.
std::int64_t merge_lora(torch::nn::Module& root);

}  // namespace llava::nn
