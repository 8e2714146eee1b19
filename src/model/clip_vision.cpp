#include "llava/model/clip_vision.h"

#include "llava/base/check.h"
#include "llava/nn/activation.h"
#include "llava/nn/attention.h"

#include <algorithm>

namespace llava::model {

using torch::Tensor;

ClipEmbeddingsImpl::PatchEmbeddingImpl::PatchEmbeddingImpl(const ClipVisionConfig& config,
                                                           const torch::TensorOptions& options) {
  weight = register_parameter("weight", torch::empty({config.hidden_size, config.num_channels,
                                                      config.patch_size, config.patch_size},
                                                     options));
}

ClipEmbeddingsImpl::ClipEmbeddingsImpl(const ClipVisionConfig& config,
                                       const torch::TensorOptions& options) {
  const auto C = config.hidden_size;
  class_embedding = register_parameter("class_embedding", torch::empty({C}, options));
  patch_embedding =
      register_module("patch_embedding", std::make_shared<PatchEmbeddingImpl>(config, options));
  position_embedding = register_module(
      "position_embedding", nn::Embedding(config.side() * config.side() + 1, C, options));
}

Tensor ClipEmbeddingsImpl::forward(const Tensor& pixels) {
  const auto& kernel = patch_embedding->weight;
  const auto N = pixels.size(0), patch = kernel.size(2);
  const auto patches = torch::conv2d(pixels.to(kernel.scalar_type()), kernel, /*bias=*/{}, patch)
                           .flatten(2)
                           .transpose(1, 2);  // [N, P-1, C]
  const auto first = class_embedding.expand({N, 1, -1});
  return torch::cat({first, patches}, 1) + position_embedding->weight;  // [N, P, C]
}

ClipAttentionImpl::ClipAttentionImpl(const ClipVisionConfig& config,
                                     const torch::TensorOptions& options)
    : heads(config.num_attention_heads) {
  const auto C = config.hidden_size;
  k_proj = register_module("k_proj", nn::Linear(C, C, true, options));
  v_proj = register_module("v_proj", nn::Linear(C, C, true, options));
  q_proj = register_module("q_proj", nn::Linear(C, C, true, options));
  out_proj = register_module("out_proj", nn::Linear(C, C, true, options));
}

Tensor ClipAttentionImpl::forward(const Tensor& x) {
  const auto N = x.size(0), P = x.size(1);
  const auto split = [&](const Tensor& y) {  // [N, P, C] -> [N, heads, P, C/heads]
    return y.view({N, P, heads, -1}).transpose(1, 2);
  };
  const auto y = nn::full_attention(split(q_proj(x)), split(k_proj(x)), split(v_proj(x)));
  return out_proj(y.transpose(1, 2).reshape({N, P, -1}));
}

ClipMlpImpl::ClipMlpImpl(const ClipVisionConfig& config, const torch::TensorOptions& options)
    : is_quick(config.hidden_act == "quick_gelu") {
  const auto C = config.hidden_size, F = config.intermediate_size;
  fc1 = register_module("fc1", nn::Linear(C, F, true, options));
  fc2 = register_module("fc2", nn::Linear(F, C, true, options));
}

Tensor ClipMlpImpl::forward(const Tensor& x) {
  const auto y = fc1(x);
  return fc2(is_quick ? nn::quick_gelu(y) : torch::gelu(y));
}

ClipLayerImpl::ClipLayerImpl(const ClipVisionConfig& config, const torch::TensorOptions& options) {
  const auto C = config.hidden_size;
  const double eps = config.layer_norm_eps;
  self_attn = register_module("self_attn", ClipAttention(config, options));
  layer_norm1 = register_module("layer_norm1", nn::LayerNorm(C, eps, options));
  mlp = register_module("mlp", ClipMlp(config, options));
  layer_norm2 = register_module("layer_norm2", nn::LayerNorm(C, eps, options));
}

Tensor ClipLayerImpl::forward(const Tensor& x) {
  const auto y = x + self_attn(layer_norm1(x));
  return y + mlp(layer_norm2(y));
}

ClipEncoderImpl::ClipEncoderImpl(const ClipVisionConfig& config,
                                 const torch::TensorOptions& options) {
  layers = register_module("layers", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i)
    layers->push_back(ClipLayer(config, options));
}

ClipVisionImpl::ClipVisionImpl(const ClipVisionConfig& config, const torch::TensorOptions& options)
    : config(config) {
  const auto C = config.hidden_size;
  const double eps = config.layer_norm_eps;
  embeddings = register_module("embeddings", ClipEmbeddings(config, options));
  pre_layrnorm = register_module("pre_layrnorm", nn::LayerNorm(C, eps, options));
  encoder = register_module("encoder", ClipEncoder(config, options));
  post_layernorm = register_module("post_layernorm", nn::LayerNorm(C, eps, options));
}

std::vector<Tensor> ClipVisionImpl::forward(const Tensor& pixels,
                                            const std::vector<std::int64_t>& entries) {
  const auto num_entries = config.num_hidden_layers + 1;
  std::vector<std::int64_t> wanted;
  for (const auto entry : entries) {
    wanted.push_back(entry < 0 ? num_entries + entry : entry);
    expect(wanted.back() >= 0 && wanted.back() < num_entries, Fault::usage, "hidden state ", entry,
           " of the vision tower does not exist: it has ", num_entries,
           " (the embeddings' and one per layer)");
  }
  const auto last = *std::max_element(wanted.begin(), wanted.end());
  std::vector<Tensor> found(wanted.size());
  const auto keep = [&](std::int64_t entry, const Tensor& x) {
    for (std::size_t i = 0; i < wanted.size(); ++i)
      if (wanted[i] == entry) found[i] = x;
  };

  auto x = pre_layrnorm(embeddings(pixels));  // [N, P, C]
  keep(0, x);
  for (std::int64_t i = 0; i < last; ++i) {
    auto& layer = encoder->layers->at<ClipLayerImpl>(i);
    const auto block = [&layer](const Tensor& y) { return layer.forward(y); };
    x = recompute == nn::Recompute::full ? nn::recompute(block, x, nn::is_trainable(layer))
                                         : block(x);
    keep(i + 1, x);
  }
  return found;
}

}  // namespace llava::model
