// Next-token cross-entropy on a flat batch. Only learned positions go through the output head, a
// chunk at a time, and their gradients are made in the same pass, so the logits never exist whole.
// The method: linkedin/Liger-Kernel, fused_linear_cross_entropy.py.
//   T tokens of all rows   B rows   D hidden size   V vocabulary   n learned positions
#pragma once

#include "llava/torch.h"

#include <vector>

namespace llava::nn {

inline constexpr std::int64_t kNotLearned = -100;  // label of a token that is not learned

struct TokenLoss {
  torch::Tensor sum;       // [] float32, differentiable with respect to hidden and weight
  std::int64_t count = 0;  // learned positions
  torch::Tensor each;      // [n] float32: the loss of each of them, in order; no gradient
};

/// Positions whose next token (of the same row) is learned, and that token. Labels on the CPU cost
/// no wait for the device.
struct Targets {
  torch::Tensor positions, tokens;  // [n] int64 each, on the CPU
};
Targets learned_targets(const torch::Tensor& labels, const std::vector<std::int64_t>& starts);

/// Cross-entropy of hidden [n, D] against `tokens` [n] int64; weight [V, D]. Softmax and sum in
/// fp32. When n is 0 the sum is 0 and its gradients are zeros. Logits of at most `chunk` positions
/// exist at a time; 0: as many as take 128 MiB.
TokenLoss token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                     const torch::Tensor& tokens, std::int64_t chunk = 0);

/// The same of the positions of hidden [T, D] that are learned by labels [T] int64, starts [B+1].
TokenLoss next_token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                          const torch::Tensor& labels, const std::vector<std::int64_t>& starts,
                          std::int64_t chunk = 0);

}  // namespace llava::nn
