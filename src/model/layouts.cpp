#include "llava/model/layouts.h"

#include "llava/weights/key_map.h"

namespace llava::model {
namespace {

using weights::Rename;

// One table per layout, read from left to right for loading and from right to left for saving.
// Sources: transformers 5.24, conversion_mapping.py; haotian-liu/LLaVA 1.2.2; huggingface/peft.

/// Files of the original LLaVA; without tower and projector, of a Llama.
constexpr Rename kOriginal[] = {
    {"model.vision_tower.vision_tower.vision_model.", "vision."},
    {"model.mm_projector.", "projector."},
    {"model.image_newline", "image_newline"},
    {"model.embed_tokens.", "llama.embed_tokens."},
    {"model.layers.", "llama.layers."},
    {"model.norm.", "llama.norm."},
    {"lm_head.", "lm_head."},
};

/// Files of Hugging Face's LLaVA, which every version of transformers reads.
constexpr Rename kHuggingFace[] = {
    {"language_model.model.", "llama."},
    {"language_model.lm_head.", "lm_head."},
    {"vision_tower.vision_model.", "vision."},
    {"multi_modal_projector.linear_1.", "projector.0."},
    {"multi_modal_projector.linear_2.", "projector.2."},
    {"image_newline", "image_newline"},
};

/// Modules of transformers 5, whose names some files have as well.
constexpr Rename kModules[] = {
    {"model.language_model.", "llama."},
    {"lm_head.", "lm_head."},
    {"model.vision_tower.", "vision."},
    {"model.multi_modal_projector.linear_1.", "projector.0."},
    {"model.multi_modal_projector.linear_2.", "projector.2."},
    {"model.image_newline", "image_newline"},
};

/// Saves with a prefix too many or too few; read before kModules, whose prefixes are shorter.
constexpr Rename kNested[] = {
    {"model.language_model.lm_head.", "lm_head."},
    {"model.language_model.model.", "llama."},
    {"model.vision_tower.vision_tower.", "vision."},
    {"model.vision_tower.vision_model.", "vision."},
    {"vision_tower.vision_tower.vision_model.", "vision."},
    {"vision_tower.vision_tower.", "vision."},
};

/// Parts on their own: towers, decoders and projectors, read last.
constexpr Rename kParts[] = {
    {"vision_tower.", "vision."},
    {"vision_model.", "vision."},
    {"embeddings.", "vision.embeddings."},
    {"pre_layrnorm.", "vision.pre_layrnorm."},
    {"encoder.", "vision.encoder."},
    {"post_layernorm.", "vision.post_layernorm."},
    {"embed_tokens.", "llama.embed_tokens."},
    {"layers.", "llama.layers."},
    {"norm.", "llama.norm."},
    {"mm_projector.", "projector."},
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
  using Table = std::span<const Rename>;
  for (const Table table :
       {Table(kOriginal), Table(kNested), Table(kModules), Table(kHuggingFace), Table(kParts)})
    if (auto ours = weights::renamed(name, table)) return ours;
  return std::nullopt;
}

bool is_ignored(std::string_view name) {
  name = unwrapped(name);
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("position_ids") ||
         name.starts_with("text_model.") || name == "logit_scale" ||
         name == "text_projection.weight" || name == "visual_projection.weight";
}

std::string layout_name(const std::string& ours, Layout layout) {
  const auto theirs = layout == Layout::hugging_face ? weights::renamed_back(ours, kHuggingFace)
                                                     : weights::renamed_back(ours, kOriginal);
  return theirs.value_or(ours);
}

std::string module_name(const std::string& ours, Layout layout) {
  if (layout == Layout::original) return layout_name(ours, layout);
  return weights::renamed_back(ours, kModules).value_or(ours);
}

}  // namespace llava::model
