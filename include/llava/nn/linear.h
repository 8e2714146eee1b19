// Linear and Embedding with weights left uninitialised: a checkpoint or initialize() fills them.
// LoRA and packing are state of a Linear (see nn/lora.h, nn/packed.h), not subclasses.
#pragma once

#include "llava/nn/packed.h"

#include <memory>

namespace llava::nn {

struct LinearImpl : torch::nn::Module {
  LinearImpl(std::int64_t in, std::int64_t out, bool with_bias,
             const torch::TensorOptions& options);

  torch::Tensor forward(const torch::Tensor& x);  // [..., in] -> [..., out]

  /// Keeps the weight packed and gives the original's memory back. Throws Error(usage) unless
  /// can_pack().
  void pack(Packing packing);

  /// Where it computes.
  torch::Device device() const { return packed ? packed->device() : weight.device(); }

  std::int64_t in() const { return weight.size(1); }
  std::int64_t out() const { return weight.size(0); }
  bool has_lora() const { return lora_A != nullptr; }

  torch::Tensor weight;  // [out, in]; on the meta device once packed
  torch::Tensor bias;    // [out]; undefined without
  std::shared_ptr<const PackedWeight> packed;

  // y = W x + lora_scale * B A dropout(x); both nullptr without LoRA. Registered under PEFT's
  // names.
  std::shared_ptr<LinearImpl> lora_A, lora_B;  // [r, in], [out, r]
  double lora_scale = 0, lora_dropout = 0;
};
TORCH_MODULE(Linear);

struct EmbeddingImpl : torch::nn::Module {
  EmbeddingImpl(std::int64_t rows, std::int64_t width, const torch::TensorOptions& options);

  torch::Tensor forward(const torch::Tensor& ids);  // [T] int64 -> [T, width]

  torch::Tensor weight;  // [rows, width]
};
TORCH_MODULE(Embedding);

/// y = W x + bias as every Linear that is not packed computes it.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                     const torch::Tensor& bias = {});

}  // namespace llava::nn
