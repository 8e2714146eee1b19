// Attention of training on CPUs with AVX-512, in float32 and bfloat16. Kept for backward are its
// inputs, its output and one number a query and head; nothing is ever [T, T]. A row's result
// depends neither on its neighbours nor on the number of threads.
//   T tokens of all rows   H query heads   K key/value heads (H % K == 0)   E head size
#pragma once

#include "llava/torch.h"

#include <vector>

namespace llava::nn {

/// Whether cpu_flash() serves q [..., E] with keys k, in training: one type of the two, even heads
/// of up to 256.
bool has_cpu_flash(const torch::Tensor& q, const torch::Tensor& k);

/// q [T, H, E], k and v [T, K, E] -> [T, H, E], recorded for autograd. Rows stand at `starts`
/// [B+1]; a token sees those of its row, with `is_causal` the ones up to itself.
torch::Tensor cpu_flash(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<std::int64_t>& starts, bool is_causal);

}  // namespace llava::nn
