#include "llava/model/token_step.h"

#include <algorithm>
#include <initializer_list>

namespace llava::model {
namespace {

bool is_packed(std::initializer_list<nn::Linear> linears) {
  return std::all_of(linears.begin(), linears.end(), [&](const nn::Linear& linear) {
    return linear && linear->packed && !linear->has_lora() &&
           linear->packed->packing() == (*linears.begin())->packed->packing();
  });
}

bool is_packed(const LlamaLayerImpl& layer) {
  const auto& attention = *layer.self_attn;
  const auto& mlp = *layer.mlp;
  return is_packed({attention.q_proj, attention.k_proj, attention.v_proj}) &&
         is_packed({attention.o_proj}) && is_packed({mlp.gate_proj, mlp.up_proj}) &&
         is_packed({mlp.down_proj});
}

nn::PackedLinear part(const nn::Linear& linear) {
  return {linear->packed, linear->bias.defined() ? linear->bias.to(torch::kFloat32) : linear->bias};
}

nn::TokenLayer part(const LlamaLayerImpl& layer) {
  const auto& attention = *layer.self_attn;
  const auto& mlp = *layer.mlp;
  return {.input_norm = layer.input_layernorm->weight,
          .post_attention_norm = layer.post_attention_layernorm->weight,
          .q = part(attention.q_proj),
          .k = part(attention.k_proj),
          .v = part(attention.v_proj),
          .o = part(attention.o_proj),
          .gate = part(mlp.gate_proj),
          .up = part(mlp.up_proj),
          .down = part(mlp.down_proj)};
}

}  // namespace

std::shared_ptr<nn::TokenStep> make_token_step(const Llava& model) {
  const auto& llama = *model->llama;
  const auto& weight = llama.embed_tokens->weight;
  const bool can = weight.is_cpu() && weight.scalar_type() == torch::kBFloat16 &&
                   nn::TokenStep::is_possible() && llama.config.head_dim % 2 == 0 &&
                   llama.config.sliding_window <= 0 && model->lm_head &&
                   is_packed({model->lm_head});
  if (!can) return nullptr;
  torch::NoGradGuard no_grad;
  nn::TokenDecoder decoder;
  for (std::int64_t i = 0; i < llama.config.num_hidden_layers; ++i) {
    const auto& layer = llama.layers->at<LlamaLayerImpl>(i);
    if (!is_packed(layer)) return nullptr;
    decoder.layers.push_back(part(layer));
  }
  decoder.embeddings = weight;
  decoder.norm = llama.norm->weight;
  decoder.head = part(model->lm_head);
  decoder.heads = llama.config.num_attention_heads;
  decoder.kv_heads = llama.config.num_key_value_heads;
  decoder.head_size = llama.config.head_dim;
  decoder.eps = llama.config.rms_norm_eps;
  decoder.rotary = llama.rotary();
  return std::make_shared<nn::TokenStep>(std::move(decoder));
}

}  // namespace llava::model
