#include "llava/nn/linear.h"

namespace llava::nn {

LinearImpl::LinearImpl(std::int64_t in, std::int64_t out, bool with_bias,
                       const torch::TensorOptions& options) {
  weight = register_parameter("weight", torch::empty({out, in}, options));
  if (with_bias) bias = register_parameter("bias", torch::empty({out}, options));
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) {
  const auto y = linear(x, weight, bias);
  if (!has_lora()) return y;
  const bool drops = lora_dropout > 0 && is_training();
  const auto input = drops ? torch::dropout(x, lora_dropout, /*train=*/true) : x;
  const auto change = lora_B->forward(lora_A->forward(input.to(lora_A->weight.scalar_type())));
  return y + (change * lora_scale).to(y.scalar_type());
}

EmbeddingImpl::EmbeddingImpl(std::int64_t rows, std::int64_t width,
                             const torch::TensorOptions& options) {
  weight = register_parameter("weight", torch::empty({rows, width}, options));
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& ids) {
  return torch::embedding(weight, ids);
}

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                     const torch::Tensor& bias) {
  return torch::linear(x, weight, bias);
}

}  // namespace llava::nn
