// Attention in bfloat16 without gradients on CPUs with AVX-512, where LibTorch's is slow.
//   T queries   L keys   H query heads   K key/value heads (H % K == 0)   E head size
#pragma once

#include "llava/torch.h"

namespace llava::nn {

/// Whether attention of these queries is done here.
bool has_cpu_attention(const torch::Tensor& q);

/// What scores of heads of a size are multiplied with.
float attention_scale(std::int64_t head_size);

/// q [N, T, H, E], k and v [N, L, K, E] of any strides but the last -> [N, T, H, E]. Query t sees
/// keys 0 ... first + t, or every key.
torch::Tensor cpu_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            std::int64_t first, bool is_causal);

/// One new query a head, q [H, E], against keys and values [K, L, E] -> [H, E].
torch::Tensor cpu_attention_of_one(const torch::Tensor& q, const torch::Tensor& keys,
                                   const torch::Tensor& values);

}  // namespace llava::nn
