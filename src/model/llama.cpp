#include "llava/model/llama.h"

#include "llava/base/check.h"
#include "llava/nn/activation.h"
#include "llava/nn/packed.h"

namespace llava::model {
namespace {

using torch::Tensor;

nn::RotaryConfig rotary_config(const LlamaConfig& config) {
  nn::RotaryConfig rotary;
  rotary.head_dim = config.head_dim;
  rotary.theta = config.rope_theta;
  rotary.max_positions = config.max_position_embeddings;
  if (!config.rope_scaling || config.rope_scaling->type == "default") return rotary;
  const auto& scaling = *config.rope_scaling;
  using Scaling = nn::RotaryConfig::Scaling;
  if (scaling.type == "linear") {
    rotary.scaling = Scaling::linear;
  } else if (scaling.type == "dynamic") {
    rotary.scaling = Scaling::dynamic;
  } else if (scaling.type == "llama3") {
    rotary.scaling = Scaling::llama3;
  } else {
    fail(Fault::data, "rope scaling \"", scaling.type,
         "\" is not known; this program has default, linear, dynamic and llama3");
  }
  rotary.factor = scaling.factor;
  rotary.low_freq_factor = scaling.low_freq_factor;
  rotary.high_freq_factor = scaling.high_freq_factor;
  rotary.original_max_positions = scaling.original_max_position_embeddings;
  return rotary;
}

/// The wanted rows of x [T, D], or all.
Tensor chosen(const Tensor& x, const Tensor& wanted) {
  return wanted.defined() ? x.index_select(0, wanted) : x;
}

}  // namespace

LlamaAttentionImpl::LlamaAttentionImpl(const LlamaConfig& config,
                                       const torch::TensorOptions& options)
    : heads(config.num_attention_heads),
      kv_heads(config.num_key_value_heads),
      head_dim(config.head_dim) {
  const auto D = config.hidden_size;
  const bool bias = config.attention_bias;
  q_proj = register_module("q_proj", nn::Linear(D, heads * head_dim, bias, options));
  k_proj = register_module("k_proj", nn::Linear(D, kv_heads * head_dim, bias, options));
  v_proj = register_module("v_proj", nn::Linear(D, kv_heads * head_dim, bias, options));
  o_proj = register_module("o_proj",
                           nn::Linear(heads * head_dim, D, config.attention_output_bias, options));
}

Tensor LlamaAttentionImpl::forward(const Tensor& residual, const nn::Made& x,
                                   const LlamaContext& context, std::int64_t layer) {
  const auto T = x.inputs[0].size(0);
  const auto projected = nn::linears({q_proj, k_proj, v_proj}, x);
  const auto q = nn::rotate(projected[0].view({T, heads, head_dim}), context.cos, context.sin);
  const auto k = nn::rotate(projected[1].view({T, kv_heads, head_dim}), context.cos, context.sin);
  const auto v = projected[2].view({T, kv_heads, head_dim});
  const auto y = nn::attention(q, k, v, context.rows, layer);  // [T, H, E]
  return nn::add_linear(residual, o_proj, chosen(y.reshape({T, heads * head_dim}), context.wanted));
}

LlamaMlpImpl::LlamaMlpImpl(const LlamaConfig& config, const torch::TensorOptions& options) {
  const auto D = config.hidden_size, F = config.intermediate_size;
  gate_proj = register_module("gate_proj", nn::Linear(D, F, config.mlp_bias, options));
  up_proj = register_module("up_proj", nn::Linear(D, F, config.mlp_bias, options));
  down_proj = register_module("down_proj", nn::Linear(F, D, config.mlp_bias, options));
}

Tensor LlamaMlpImpl::forward(const Tensor& residual, const nn::Made& x) {
  if (const auto gated = nn::gated_linears(gate_proj, up_proj, x); gated.defined())
    return nn::add_linear(residual, down_proj, gated);
  const auto projected = nn::linears({gate_proj, up_proj}, x);
  const auto swiglu = [](const std::vector<Tensor>& gate_up) -> Tensor {
    return nn::swiglu(gate_up[0], gate_up[1]);
  };
  return nn::add_linear(residual, down_proj, {swiglu, projected, x.is_kept});
}

LlamaLayerImpl::LlamaLayerImpl(const LlamaConfig& config, const torch::TensorOptions& options) {
  const auto D = config.hidden_size;
  const double eps = config.rms_norm_eps;
  self_attn = register_module("self_attn", LlamaAttention(config, options));
  mlp = register_module("mlp", LlamaMlp(config, options));
  input_layernorm = register_module("input_layernorm", nn::RmsNorm(D, eps, options));
  post_attention_layernorm =
      register_module("post_attention_layernorm", nn::RmsNorm(D, eps, options));
}

Tensor LlamaLayerImpl::forward(const Tensor& x, const LlamaContext& context, std::int64_t layer) {
  const auto normed = [&](const nn::RmsNorm& norm, const Tensor& input) -> nn::Made {
    const auto make = [norm](const std::vector<Tensor>& in) {
      return nn::rms_norm(in[0], norm->weight, norm->eps);
    };
    return {make, {input}, context.keeps_cheap};
  };
  const auto y =
      self_attn->forward(chosen(x, context.wanted), normed(input_layernorm, x), context, layer);
  return mlp->forward(y, normed(post_attention_layernorm, y));
}

LlamaImpl::LlamaImpl(const LlamaConfig& config, const torch::TensorOptions& options)
    : config(config), rotary_(rotary_config(config)) {
  const auto D = config.hidden_size;
  embed_tokens = register_module("embed_tokens", nn::Embedding(config.vocab_size, D, options));
  layers = register_module("layers", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i)
    layers->push_back(LlamaLayer(config, options));
  norm = register_module("norm", nn::RmsNorm(D, config.rms_norm_eps, options));
}

Tensor LlamaImpl::forward(const Tensor& embeds, const std::vector<std::int64_t>& starts,
                          const std::vector<nn::KvCache*>& caches, const Tensor& wanted) {
  expect(!starts.empty() && starts.back() == embeds.size(0), Fault::usage,
         "the rows of the batch end at ", starts.empty() ? 0 : starts.back(), " but there are ",
         embeds.size(0), " tokens");
  expect(caches.empty() || !torch::GradMode::is_enabled(), Fault::usage,
         "a decoder with caches cannot be trained: turn gradients off");
  // Shared, since backward may run layers again after this returns.
  const auto rows = std::make_shared<const nn::Rows>(starts, caches, embeds.device());
  for (std::int64_t row = 0; config.sliding_window > 0 && row < rows->size(); ++row)
    expect(rows->first[row] + rows->length(row) <= config.sliding_window, Fault::capacity, "row ",
           row, " has ", rows->first[row] + rows->length(row),
           " tokens but this model's sliding "
           "window is ",
           config.sliding_window,
           ", beyond which its attention is not implemented; "
           "shorten the input or use a model without sliding_window");
  const nn::CoarseInputs coarse(rows->longest > 1);
  const auto [cos, sin] = rotary_.rows(starts, rows->first, embeds.options());

  auto x = embeds;
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const bool keeps_cheap = recompute != nn::Recompute::selective;
    const auto given = i + 1 == config.num_hidden_layers ? wanted : Tensor();
    const auto block = [this, i, rows, cos = cos, sin = sin, given, keeps_cheap](const Tensor& y) {
      return layers->at<LlamaLayerImpl>(i).forward(y, {*rows, cos, sin, given, keeps_cheap}, i);
    };
    if (before_layer) before_layer(i, x);
    x = recompute == nn::Recompute::full
            ? nn::recompute(block, x, nn::is_trainable(*layers->ptr(i)))
            : block(x);
    if (after_layer) after_layer(i, x);
  }
  for (std::size_t row = 0; row < caches.size(); ++row) caches[row]->advance(rows->length(row));
  return norm(x);
}

Tensor LlamaImpl::forward_at(const Tensor& embeds, const Tensor& positions,
                             const std::vector<nn::KvCache*>& caches, std::int64_t window) {
  const nn::Rows rows(positions, caches, window);
  const auto [cos, sin] = rotary_.at(positions, window, embeds.options());
  auto x = embeds;
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i)
    x = layers->at<LlamaLayerImpl>(i).forward(x, {rows, cos, sin, {}, true}, i);
  return norm(x);
}

nn::KvCache make_cache(const Llama& llama, std::int64_t capacity) {
  const auto& config = llama->config;
  return {config.num_hidden_layers, config.num_key_value_heads, config.head_dim, capacity,
          llama->embed_tokens->weight.options().requires_grad(false)};
}

}  // namespace llava::model
