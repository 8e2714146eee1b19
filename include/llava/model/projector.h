// From vision width to text width: one Linear, an MLP, or nothing.
// Source: haotian-liu/LLaVA 1.2.2, multimodal_projector/builder.py (types and parameter names).
#pragma once

#include "llava/model/config.h"
#include "llava/nn/linear.h"

namespace llava::model {

struct ProjectorImpl : torch::nn::Module {
  /// "linear" has parameters weight, bias; "mlpNx_gelu" has 0.weight, 0.bias, 2.weight, ...;
  /// "identity" has none. Throws Error(data) for another type.
  ProjectorImpl(const LlavaConfig& config, const torch::TensorOptions& options);

  torch::Tensor forward(const torch::Tensor& features);  // [..., C] -> [..., D]

  std::string activation;  // between the Linears: "gelu" (by erf) unless the config says otherwise
  std::vector<nn::Linear> layers;
};
TORCH_MODULE(Projector);

/// Linears of a projector type: 1 for "linear", N for "mlpNx_gelu", 0 for "identity".
/// Throws Error(data) for another type.
std::int64_t projector_depth(const std::string& type);

}  // namespace llava::model
