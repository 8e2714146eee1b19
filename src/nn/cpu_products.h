// Matrix products of training on CPUs with AVX-512: a weight's panel of 64 columns
// is packed into the cache, and all rows go through it. LibTorch's float32 products are written for
// AVX2 on many of these CPUs, and its bfloat16 ones pack both operands. Sums are in fp32, in one
// order: a row's result depends neither on the rows beside it nor on the number of threads.
//   T rows   K inputs   N outputs
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// Whether these products serve rows x [..., K] or gradients x [..., N] with weight [N, K]: both
/// float32 or both bfloat16, sizes even, rows enough to pay for packing.
bool has_cpu_products(const torch::Tensor& x, const torch::Tensor& weight);

/// Whether cpu_weight_gradient() serves grad [T, N] and x [T, K]; any number of rows that pays.
bool has_cpu_weight_gradient(const torch::Tensor& grad, const torch::Tensor& x);

/// x [T, K], weight [N, K], bias [N] or undefined -> [T, N].
torch::Tensor cpu_product(const torch::Tensor& x, const torch::Tensor& weight,
                          const torch::Tensor& bias);

/// grad [T, N], weight [N, K] -> [T, K].
torch::Tensor cpu_input_gradient(const torch::Tensor& grad, const torch::Tensor& weight);

/// grad [T, N], x [T, K]: adds to `sum` [N, K] and returns it; into a new tensor if undefined.
torch::Tensor cpu_weight_gradient(const torch::Tensor& grad, const torch::Tensor& x,
                                  torch::Tensor sum);

}  // namespace llava::nn
