#include "llava/nn/lora.h"

#include "llava/base/check.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

namespace llava::nn {

double LoraConfig::scale() const {
  const auto rank = static_cast<double>(r);
  return alpha / (rslora ? std::sqrt(rank) : rank);
}

std::vector<std::pair<std::string, Linear>> named_linears(torch::nn::Module& root) {
  std::vector<std::pair<std::string, Linear>> found;
  for (const auto& item : root.named_modules("", /*include_self=*/false)) {
    const auto linear = std::dynamic_pointer_cast<LinearImpl>(item.value());
    const bool is_pair = item.key().ends_with("lora_A") || item.key().ends_with("lora_B");
    if (linear && !is_pair) found.emplace_back(item.key(), Linear(linear));
  }
  return found;
}

void attach_lora(Linear& linear, const LoraConfig& config, std::uint64_t seed,
                 std::optional<torch::ScalarType> dtype) {
  expect(!linear->has_lora(), Fault::usage,
         "this layer has a LoRA already; merge it before attaching another");
  expect(config.r > 0, Fault::usage, "LoRA's rank must be positive, got ", config.r);
  torch::NoGradGuard no_grad;
  const auto options =
      torch::TensorOptions(dtype.value_or(linear->weight.scalar_type())).device(linear->device());
  const auto in = linear->in(), out = linear->out();
  linear->lora_A = linear->register_module(
      "lora_A", std::make_shared<LinearImpl>(in, config.r, /*with_bias=*/false, options));
  linear->lora_B = linear->register_module(
      "lora_B", std::make_shared<LinearImpl>(config.r, out, /*with_bias=*/false, options));
  linear->lora_scale = config.scale();
  linear->lora_dropout = config.dropout;

  // peft's kaiming_uniform_(a = sqrt(5)) is uniform within 1 / sqrt(in).
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const double bound = 1.0 / std::sqrt(static_cast<double>(in));
  linear->lora_A->weight.copy_(
      torch::empty({config.r, in}, torch::kFloat32).uniform_(-bound, bound, generator));
  linear->lora_B->weight.zero_();
}

std::int64_t attach_lora(torch::nn::Module& root,
                         const std::function<bool(const std::string&)>& is_chosen,
                         const LoraConfig& config, std::uint64_t seed) {
  std::int64_t count = 0;
  for (auto& [name, linear] : named_linears(root))
    if (is_chosen(name)) attach_lora(linear, config, seed + static_cast<std::uint64_t>(count++));
  return count;
}

void merge_lora(Linear& linear) {
  if (!linear->has_lora()) return;
  expect(!linear->packed, Fault::usage,
         "a LoRA cannot be merged into a packed weight; load the model without --bits");
  torch::NoGradGuard no_grad;
  const auto change = torch::matmul(linear->lora_B->weight.to(torch::kFloat32),
                                    linear->lora_A->weight.to(torch::kFloat32));
  linear->weight.copy_(linear->weight.to(torch::kFloat32) + linear->lora_scale * change);
  linear->unregister_module("lora_A");
  linear->unregister_module("lora_B");
  linear->lora_A = linear->lora_B = nullptr;
}

std::int64_t merge_lora(torch::nn::Module& root) {
  std::int64_t count = 0;
  for (auto& [name, linear] : named_linears(root)) {
    if (!linear->has_lora()) continue;
    merge_lora(linear);
    ++count;
  }
  return count;
}

}  // namespace llava::nn
