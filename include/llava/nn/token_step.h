// One new token for each of a few rows through a whole decoder, on a CPU, in bfloat16: what decode
// does over and over. It works in memory that is kept, so that, once as many rows have come as ever
// come together, nothing is allocated. Results are bit for bit those of the modules.
//   B rows   D hidden size   H query heads   K key/value heads   E head size   F feed-forward size
//   V vocabulary
#pragma once

#include "llava/nn/kv_cache.h"
#include "llava/nn/packed.h"
#include "llava/nn/rotary.h"

#include <memory>
#include <span>
#include <vector>

namespace llava::nn {

struct PackedLinear {
  std::shared_ptr<const PackedWeight> weight;
  torch::Tensor bias;  // [N] float32; undefined without
};

/// A layer of a Llama. q, k and v have one packing, and so have gate and up.
struct TokenLayer {
  torch::Tensor input_norm, post_attention_norm;  // [D] bfloat16
  PackedLinear q, k, v, o, gate, up, down;
};

struct TokenDecoder {
  std::vector<TokenLayer> layers;
  torch::Tensor embeddings;  // [V, D] bfloat16
  torch::Tensor norm;        // [D] bfloat16
  PackedLinear head;         // D -> V
  std::int64_t heads = 0, kv_heads = 0, head_size = 0;
  double eps = 0;
  Rotary rotary;
};

/// The next token of a row: its id, the keys and values that it goes behind, and where the logits
/// [V] of what follows it go.
struct NextToken {
  std::int64_t id;
  KvCache* cache;
  float* logits;
};

class TokenStep {
 public:
  /// Whether this CPU has the kernels.
  static bool is_possible();

  explicit TokenStep(TokenDecoder decoder);
  ~TokenStep();
  TokenStep(const TokenStep&) = delete;
  TokenStep& operator=(const TokenStep&) = delete;

  /// Puts each token behind its row, whose cache has grown by it when this returns. Throws
  /// Error(capacity) when a cache is full, Error(usage) for an unknown token; all caches are then
  /// as they were.
  void forward(std::span<const NextToken> tokens);

 private:
  struct Room;

  void attend(std::int64_t layer, std::span<const NextToken> tokens);

  TokenDecoder decoder_;
  std::unique_ptr<Room> room_;
};

}  // namespace llava::nn
