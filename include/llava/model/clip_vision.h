// CLIP's vision tower.  Source: "Learning Transferable Visual Models From Natural Language
// Supervision"; transformers 5.24, modeling_clip.py (names, order of operations).
//   N tiles   S pixels a side   P patches + 1   C vision width
#pragma once

#include "llava/model/config.h"
#include "llava/nn/linear.h"
#include "llava/nn/norm.h"
#include "llava/nn/recompute.h"

namespace llava::model {

struct ClipEmbeddingsImpl : torch::nn::Module {
  ClipEmbeddingsImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& pixels);  // [N,3,S,S] -> [N,P,C]

  struct PatchEmbeddingImpl : torch::nn::Module {
    PatchEmbeddingImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
    torch::Tensor weight;  // [C, 3, patch, patch]
  };
  std::shared_ptr<PatchEmbeddingImpl> patch_embedding;
  torch::Tensor class_embedding;  // [C]
  nn::Embedding position_embedding{nullptr};
};
TORCH_MODULE(ClipEmbeddings);

struct ClipAttentionImpl : torch::nn::Module {
  ClipAttentionImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x);  // [N,P,C] -> [N,P,C]

  std::int64_t heads;
  nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, out_proj{nullptr};
};
TORCH_MODULE(ClipAttention);

struct ClipMlpImpl : torch::nn::Module {
  ClipMlpImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x);  // [N,P,C] -> [N,P,C]

  bool is_quick;  // quick_gelu: x * sigmoid(1.702 x); else gelu by erf
  nn::Linear fc1{nullptr}, fc2{nullptr};
};
TORCH_MODULE(ClipMlp);

struct ClipLayerImpl : torch::nn::Module {
  ClipLayerImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
  torch::Tensor forward(const torch::Tensor& x);  // [N,P,C] -> [N,P,C]

  ClipAttention self_attn{nullptr};
  nn::LayerNorm layer_norm1{nullptr}, layer_norm2{nullptr};
  ClipMlp mlp{nullptr};
};
TORCH_MODULE(ClipLayer);

struct ClipEncoderImpl : torch::nn::Module {
  ClipEncoderImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);
  torch::nn::ModuleList layers{nullptr};
};
TORCH_MODULE(ClipEncoder);

struct ClipVisionImpl : torch::nn::Module {
  ClipVisionImpl(const ClipVisionConfig& config, const torch::TensorOptions& options);

  /// Hidden states [N,P,C] of the asked entries of the list whose entry 0 follows pre_layrnorm and
  /// whose entry i follows block i; negative from the end. Blocks behind the last are not run.
  /// Throws Error(usage) for an entry that does not exist.
  std::vector<torch::Tensor> forward(const torch::Tensor& pixels,
                                     const std::vector<std::int64_t>& entries);

  nn::Recompute recompute = nn::Recompute::none;  // `selective` acts as none here

  ClipVisionConfig config;
  ClipEmbeddings embeddings{nullptr};
  nn::LayerNorm pre_layrnorm{nullptr};  // sic: the name in every checkpoint
  ClipEncoder encoder{nullptr};
  nn::LayerNorm post_layernorm{nullptr};  // never used by LLaVA; kept for the files
};
TORCH_MODULE(ClipVision);

}  // namespace llava::model
