// AdamW moments in eight bits: one code a value and one scale a block of 256 values, a quarter of
// the memory of fp32 moments. After "8-bit Optimizers via Block-wise Quantization"; the codes here
// follow a power law, value = scale * (code / top)^4, for the first moment (with its sign) and for
// the root of the second: exact to 2 % at the top, to 10 % a thousand times below, and a loop of
// square roots that the compiler makes vectors of.
#pragma once

#include "llava/torch.h"

namespace llava::train {

inline constexpr std::int64_t kMomentBlock = 256;

/// Scales a tensor of `count` values needs.
inline std::int64_t moment_blocks(std::int64_t count) {
  return (count + kMomentBlock - 1) / kMomentBlock;
}

struct AdamStep {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  torch::Tensor step;  // [] float32: number of this update, from 1
  torch::Tensor skip;  // [] float32: where it is 1 nothing changes
};

/// A moment: codes as large as the weight, int8 or uint8, and [blocks] float32 scales.
struct EightBitMoment {
  torch::Tensor codes, scales;
};

/// One update of `weight` float32 by `gradient` float32 of the same size.
void adam_8bit_step(const AdamStep& adam, const torch::Tensor& gradient,
                    const torch::Tensor& weight, const EightBitMoment& avg,
                    const EightBitMoment& sq);

/// The same by tensor operations: what runs on a GPU, and what tests compare the loop with.
void adam_8bit_step_by_tensors(const AdamStep& adam, const torch::Tensor& gradient,
                               const torch::Tensor& weight, const EightBitMoment& avg,
                               const EightBitMoment& sq);

}  // namespace llava::train
