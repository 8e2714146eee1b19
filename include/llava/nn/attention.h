// Attention. The flat batch's rows are known here and nowhere else: causal inside a row, blind
// across rows, each row with its own earlier keys and values.
//   T tokens of all rows   B rows   H query heads   K key/value heads (H % K == 0)   E head size
#pragma once

#include "llava/nn/kv_cache.h"

#include <vector>

namespace llava::nn {

/// How the T tokens of a flat batch fall into rows; made once a forward, used by every layer.
struct Rows {
  /// `caches`: empty, or one per row (on which the row goes on). Throws Error(usage) if the counts
  /// differ, starts do not rise from 0, or a cache is too full.
  Rows(const std::vector<std::int64_t>& starts, const std::vector<KvCache*>& caches,
       torch::Device device);

  /// One token of each row, at `positions` [B] int64 that only the device knows, against the first
  /// `window` tokens of what each row's cache has room for; those behind the token are not seen.
  /// Such a forward is the same work every time. The room must hold numbers, be they zeros.
  Rows(const torch::Tensor& positions, const std::vector<KvCache*>& caches, std::int64_t window);

  std::int64_t size() const { return static_cast<std::int64_t>(starts.size()) - 1; }
  std::int64_t length(std::int64_t row) const { return starts[row + 1] - starts[row]; }

  std::vector<std::int64_t> starts;  // [B+1]
  std::vector<KvCache*> caches;      // [B] or empty
  std::vector<std::int64_t> first;   // [B] position of each row's first token
  std::int64_t longest = 0;          // tokens of the longest row
  torch::Tensor bounds;              // starts as int32 on the device; CUDA without caches only
  std::vector<torch::Tensor>
      masks;                // [B] which earlier tokens each token of a row that goes on sees
  torch::Tensor positions;  // [B] on the device; undefined where the host knows them
  torch::Tensor seen;       // [B, window] bool: what such a token sees
};

/// q [T, H, E], k and v [T, K, E] -> [T, H, E]. With caches, k and v are appended to `layer` of
/// each row's cache, and all that it holds is attended to; the caller advances the caches after the
/// last layer.
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const Rows& rows, std::int64_t layer);

/// Every token sees every token of its sequence: q, k, v [N, H, P, E] -> [N, H, P, E].
torch::Tensor full_attention(const torch::Tensor& q, const torch::Tensor& k,
                             const torch::Tensor& v);

}  // namespace llava::nn
