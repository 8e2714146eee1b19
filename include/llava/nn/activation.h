// Activations that transformers computes in several steps.
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// silu(gate) * up, keeping the two inputs alone for backward.
/// Source: "GLU Variants Improve Transformer", eq. 6.
torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up);

/// x * sigmoid(1.702 x).  Source: transformers 5.24, activations.py, QuickGELUActivation.
torch::Tensor quick_gelu(const torch::Tensor& x);

}  // namespace llava::nn
