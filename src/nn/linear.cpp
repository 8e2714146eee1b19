#include "llava/nn/linear.h"

#include "inference.h"
#include "products.h"

namespace llava::nn {

LinearImpl::LinearImpl(std::int64_t in, std::int64_t out, bool with_bias,
                       const torch::TensorOptions& options) {
  weight = register_parameter("weight", torch::empty({out, in}, options));
  if (with_bias) bias = register_parameter("bias", torch::empty({out}, options));
}

void LinearImpl::pack(Packing packing) {
  packed = std::make_shared<const PackedWeight>(weight, packing);
  weight = torch::empty_like(weight, torch::TensorOptions(torch::kMeta).requires_grad(false));
  parameters_.erase("weight");
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) {
  torch::Tensor y;
  if (!packed) {
    y = linear(x, weight, bias);
  } else if (is_inference()) {
    y = multiply(x, {packed.get()}, {bias})[0];
  } else {
    y = multiply_frozen(x, packed);
    if (bias.defined()) y = y + bias;
  }
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
  return product(x, weight, bias);
}

}  // namespace llava::nn
