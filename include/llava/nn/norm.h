// RMS norm and layer norm.  Source: "Root Mean Square Layer Normalization", eq. 4; rounding as in
// transformers 5.24, modeling_llama.py, LlamaRMSNorm: the statistics and the scaled input in fp32,
// rounded to the input's type, then times the weight.
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// x [..., D], weight [D] -> [..., D]. Keeps only x and one number a row for backward.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

struct RmsNormImpl : torch::nn::Module {
  RmsNormImpl(std::int64_t width, double eps, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x) { return rms_norm(x, weight, eps); }

  torch::Tensor weight;  // [D]
  double eps;
};
TORCH_MODULE(RmsNorm);

struct LayerNormImpl : torch::nn::Module {
  LayerNormImpl(std::int64_t width, double eps, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x);

  torch::Tensor weight, bias;  // [D]
  double eps;
};
TORCH_MODULE(LayerNorm);

}  // namespace llava::nn
