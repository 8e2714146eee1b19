// Llama, Vicuna, Mistral and Qwen2 decoders on flat batches: rows end to end, no padding, no mask.
// Source: "LLaMA: Open and Efficient Foundation Language Models"; transformers 5.24,
// modeling_llama.py (names, order of operations, rounding).
//   B rows   T tokens of all rows   D hidden size   H query heads   K key/value heads   E head size
//   F feed-forward size
#pragma once

#include "llava/model/config.h"
#include "llava/nn/attention.h"
#include "llava/nn/linear.h"
#include "llava/nn/norm.h"
#include "llava/nn/recompute.h"
#include "llava/nn/rotary.h"

#include <functional>

namespace llava::model {

/// What all layers of one forward share.
struct LlamaContext {
  const nn::Rows& rows;
  torch::Tensor cos, sin;   // [T, E/2]
  torch::Tensor wanted;     // [W] the tokens whose output the layer gives; undefined: all
  bool keeps_cheap = true;  // false: norm outputs and activation products are made again
};

struct LlamaAttentionImpl : torch::nn::Module {
  LlamaAttentionImpl(const LlamaConfig& config, const torch::TensorOptions& options);
  /// `residual` [T or W, D] and the attention of x [T, D].
  torch::Tensor forward(const torch::Tensor& residual, const nn::Made& x,
                        const LlamaContext& context, std::int64_t layer);

  std::int64_t heads, kv_heads, head_dim;
  nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};
};
TORCH_MODULE(LlamaAttention);

/// SwiGLU feed-forward.  Source: "GLU Variants Improve Transformer", eq. 6.
struct LlamaMlpImpl : torch::nn::Module {
  LlamaMlpImpl(const LlamaConfig& config, const torch::TensorOptions& options);
  /// `residual` [T, D] and the feed-forward of x [T, D].
  torch::Tensor forward(const torch::Tensor& residual, const nn::Made& x);

  nn::Linear gate_proj{nullptr}, up_proj{nullptr}, down_proj{nullptr};
};
TORCH_MODULE(LlamaMlp);

struct LlamaLayerImpl : torch::nn::Module {
  LlamaLayerImpl(const LlamaConfig& config, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x, const LlamaContext& context,
                        std::int64_t layer);  // [T, D] -> [T or W, D]

  LlamaAttention self_attn{nullptr};
  LlamaMlp mlp{nullptr};
  nn::RmsNorm input_layernorm{nullptr}, post_attention_layernorm{nullptr};
};
TORCH_MODULE(LlamaLayer);

struct LlamaImpl : torch::nn::Module {
  LlamaImpl(const LlamaConfig& config, const torch::TensorOptions& options);

  /// embeds [T, D] of rows beginning at starts [B+1] -> hidden states [T, D] after the final norm.
  /// `caches`: one per row, or empty; a row's positions begin at its cache's length, and the cache
  /// has grown by the row when this returns. Caches need gradients to be off.
  /// `wanted` [W] int64: the tokens whose hidden states [W, D] are returned, where not all are
  /// needed: of the others the last layer makes keys and values only.
  /// Throws Error(usage) when starts and embeds disagree, Error(capacity) when a cache is full.
  torch::Tensor forward(const torch::Tensor& embeds, const std::vector<std::int64_t>& starts,
                        const std::vector<nn::KvCache*>& caches = {},
                        const torch::Tensor& wanted = {});

  /// The next token of each row, embeds [B, D], at `positions` [B] int64 that only the device
  /// knows, against the first `window` tokens of the caches' room -> hidden states [B, D]. What the
  /// caches hold by the host's count is neither looked at nor changed. The same work every time.
  torch::Tensor forward_at(const torch::Tensor& embeds, const torch::Tensor& positions,
                           const std::vector<nn::KvCache*>& caches, std::int64_t window);

  /// Called around every layer in forward, outside of what recompute runs again, with the layer's
  /// number and the hidden states that enter or leave it. Who shards weights gathers and
  /// frees them here, and hooks these tensors to do the same in backward.
  std::function<void(std::int64_t, const torch::Tensor&)> before_layer, after_layer;
  nn::Recompute recompute = nn::Recompute::none;

  const nn::Rotary& rotary() const { return rotary_; }

  LlamaConfig config;
  nn::Embedding embed_tokens{nullptr};
  torch::nn::ModuleList layers{nullptr};
  nn::RmsNorm norm{nullptr};

 private:
  nn::Rotary rotary_;
};
TORCH_MODULE(Llama);

/// An empty cache for one row of a model.
nn::KvCache make_cache(const Llama& llama, std::int64_t capacity);

}  // namespace llava::model
