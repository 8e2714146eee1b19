
#include "llava/model/layouts.h"

#include "llava/weights/key_map.h"

namespace llava::model {
namespace {

using weights::Rename;

/// Every layout's prefixes, longer ones first. Source: checkpoints as listed in transformers 5.24,
/// conversion_mapping.py; haotian-liu/LLaVA 1.2.2; huggingface/peft.
constexpr Rename kAnyToOurs[] = {
    // Hugging Face, as transformers 5 holds it; one `model.` too many in some saves
    {"model.language_model.lm_head.", "lm_head."},
    {"model.language_model.model.", "llama."},
    {"model.language_model.", "llama."},
    // Hugging Face, on disk
    {"language_model.lm_head.", "lm_head."},
    {"language_model.model.", "llama."},
    // the tower, in all of them
    {"model.vision_tower.vision_tower.vision_model.", "vision."},
    {"model.vision_tower.vision_tower.", "vision."},
    {"model.vision_tower.vision_model.", "vision."},
    {"model.vision_tower.", "vision."},
    {"vision_tower.vision_tower.vision_model.", "vision."},
    {"vision_tower.vision_tower.", "vision."},
    {"vision_tower.vision_model.", "vision."},
    {"vision_tower.", "vision."},
    {"vision_model.", "vision."},
    // projectors
    {"model.multi_modal_projector.linear_1.", "projector.0."},
    {"model.multi_modal_projector.linear_2.", "projector.2."},
    {"multi_modal_projector.linear_1.", "projector.0."},
    {"multi_modal_projector.linear_2.", "projector.2."},
    {"model.mm_projector.", "projector."},
    {"mm_projector.", "projector."},
    // the rest of the original layout, and a bare Llama
    {"model.image_newline", "image_newline"},
    {"image_newline", "image_newline"},
    {"model.embed_tokens.", "llama.embed_tokens."},
    {"model.layers.", "llama.layers."},
    {"model.norm.", "llama.norm."},
    {"lm_head.", "lm_head."},
    // a bare Llama and a bare tower saved without their prefix
    {"embed_tokens.", "llama.embed_tokens."},
    {"layers.", "llama.layers."},
    {"norm.", "llama.norm."},
    {"embeddings.", "vision.embeddings."},
    {"pre_layrnorm.", "vision.pre_layrnorm."},
    {"encoder.", "vision.encoder."},
    {"post_layernorm.", "vision.post_layernorm."},
};

constexpr Rename kOursToHuggingFace[] = {
    {"llama.", "language_model.model."},
    {"lm_head.", "language_model.lm_head."},
    {"vision.", "vision_tower.vision_model."},
    {"projector.0.", "multi_modal_projector.linear_1."},
    {"projector.2.", "multi_modal_projector.linear_2."},
};

constexpr Rename kOursToModules[] = {
    {"llama.", "model.language_model."},
    {"vision.", "model.vision_tower."},
    {"projector.0.", "model.multi_modal_projector.linear_1."},
    {"projector.2.", "model.multi_modal_projector.linear_2."},
    {"image_newline", "model.image_newline"},
};

constexpr Rename kOursToOriginal[] = {
    {"llama.", "model."},
    {"vision.", "model.vision_tower.vision_tower.vision_model."},
    {"projector.", "model.mm_projector."},
    {"image_newline", "model.image_newline"},
};

/// Drops `prefix` as often as the name begins with it.
std::string_view without(std::string_view name, std::string_view prefix) {
  while (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return name;
}

/// Drops what distributed training and PEFT put in front.
std::string_view unwrapped(std::string_view name) {
  return without(without(name, "module."), "base_model.model.");
}

}  // namespace

std::optional<std::string> our_name(std::string_view name) {
  name = unwrapped(name);
  // PEFT over the original model holds one `model.` too many at times.
  while (name.starts_with("model.model.")) name.remove_prefix(std::string_view("model.").size());
  return weights::renamed(name, kAnyToOurs);
}

bool is_ignored(std::string_view name) {
  name = unwrapped(name);
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("position_ids") ||
         name.starts_with("text_model.") || name == "logit_scale" ||
         name == "text_projection.weight" || name == "visual_projection.weight";
}

std::string layout_name(const std::string& ours, Layout layout) {
  const auto renamed = layout == Layout::hugging_face ? weights::renamed(ours, kOursToHuggingFace)
                                                      : weights::renamed(ours, kOursToOriginal);
  return renamed.value_or(ours);
}

std::string module_name(const std::string& ours, Layout layout) {
  if (layout == Layout::original) return layout_name(ours, layout);
  return weights::renamed(ours, kOursToModules).value_or(ours);
}

}  // namespace llava::model
