// The three matrix products of a Linear, by our kernels where those serve, else by LibTorch's.
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// x [..., K], weight [N, K], bias [N] or undefined -> [..., N]; recorded for autograd.
torch::Tensor product(const torch::Tensor& x, const torch::Tensor& weight,
                      const torch::Tensor& bias);

/// grad [T, N], weight [N, K] -> [T, K].
torch::Tensor input_gradient(const torch::Tensor& grad, const torch::Tensor& weight);

/// grad [T, N], x [T, K]: grad^T x [N, K], added to `sum` and returned; a new tensor if that is
/// undefined.
torch::Tensor add_weight_gradient(torch::Tensor sum, const torch::Tensor& grad,
                                  const torch::Tensor& x);

/// grad [T, N], x [T, K] -> [N, K], the gradient of `weight`; undefined where it went straight to
/// weight.grad().
torch::Tensor weight_gradient(const torch::Tensor& grad, const torch::Tensor& x,
                              const torch::Tensor& weight);

/// Whether AddsGradientsInPlace lets a weight's gradient go straight to the one it has.
bool adds_in_place(const torch::Tensor& weight);

}  // namespace llava::nn
