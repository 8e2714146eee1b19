// Row functions of training and their gradients on CPUs with AVX-512, in float32 and bfloat16, one
// pass over memory each where LibTorch takes several. Sums are in fp32, in an order that depends
// neither on a row's neighbours nor on the number of threads.
//   T rows   D width   H heads   E head size
#pragma once

#include "llava/torch.h"

#include <utility>

namespace llava::nn {

/// Whether they serve x, in training.
bool has_cpu_training_rows(const torch::Tensor& x);

/// x [..., D], weight [D] of one type -> y [..., D] and one over the root of each row's mean square
/// [T].
std::pair<torch::Tensor, torch::Tensor> cpu_training_rms_norm(const torch::Tensor& x,
                                                              const torch::Tensor& weight,
                                                              double eps);
/// x and grad [..., D], weight [D], scale [T] -> gradients of x and of the weight; undefined where
/// not wanted.
struct RmsNormGradients {
  torch::Tensor x, weight;
};
RmsNormGradients cpu_rms_norm_gradients(const torch::Tensor& x, const torch::Tensor& weight,
                                        const torch::Tensor& scale, const torch::Tensor& grad,
                                        bool wants_x, bool wants_weight);

/// gate and up [..., F] -> [..., F].
torch::Tensor cpu_training_swiglu(const torch::Tensor& gate, const torch::Tensor& up);
/// Gradients of gate and up; undefined where not wanted.
std::pair<torch::Tensor, torch::Tensor> cpu_swiglu_gradients(const torch::Tensor& gate,
                                                             const torch::Tensor& up,
                                                             const torch::Tensor& grad,
                                                             bool wants_gate, bool wants_up);

/// x [T, H, E], cos and sin [T, E/2] -> [T, H, E]; `sign` -1 turns back.
torch::Tensor cpu_turn(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin,
                       double sign);

/// Cross-entropy [n] of logits [n, V], contiguous, against tokens [n]. With `wants_gradients` the
/// logits become theirs, of the sum.
torch::Tensor cpu_cross_entropy(const torch::Tensor& logits, const torch::Tensor& tokens,
                                bool wants_gradients);

}  // namespace llava::nn
