// Row functions in bfloat16 without gradients on CPUs with AVX-512, one pass each where LibTorch
// takes several. Same rounding.
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// Whether our kernels compute with x: bfloat16 on such a CPU while no gradients are recorded.
bool has_cpu_kernels(const torch::Tensor& x);

/// The bits of a bfloat16 tensor.
const std::uint16_t* bfloat16_bits(const torch::Tensor& x);
std::uint16_t* mutable_bfloat16_bits(const torch::Tensor& x);

torch::Tensor cpu_rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);
torch::Tensor cpu_swiglu(const torch::Tensor& gate, const torch::Tensor& up);
torch::Tensor cpu_quick_gelu(const torch::Tensor& x);

/// x [T, H, E], cos and sin [T, E/2] -> [T, H, E].
torch::Tensor cpu_rotate(const torch::Tensor& x, const torch::Tensor& cos,
                         const torch::Tensor& sin);

}  // namespace llava::nn
