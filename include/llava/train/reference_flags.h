// Flags of the reference's scripts and of transformers' TrainingArguments that have no setting of
// their own here, so that a line of scripts/v1_5 runs as it stands: each means one of our settings,
// or what is done anyway, and never silently nothing.
// Source: haotian-liu/LLaVA 1.2.2, scripts/v1_5 and train.py; LLaVA-VL/LLaVA-NeXT, train.py.
#pragma once

#include "llava/train/config.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::train {

/// Those of the flags below that may be given without a value, which means true.
inline constexpr const char* kReferenceSwitches[] = {"freeze_backbone",
                                                     "freeze_mm_mlp_adapter",
                                                     "unfreeze_mm_vision_tower",
                                                     "group_by_length",
                                                     "tf32",
                                                     "fp16",
                                                     "lazy_preprocess",
                                                     "is_multimodal",
                                                     "mm_use_im_patch_token",
                                                     "dataloader_drop_last",
                                                     "logging_first_step",
                                                     "remove_unused_columns",
                                                     "do_train",
                                                     "disable_tqdm"};

struct ReferenceFlags {
  std::optional<std::string> deepspeed, mm_tunable_parts, lora_bias, attn_implementation,
      logging_strategy;
  std::optional<bool> freeze_backbone, freeze_mm_mlp_adapter, unfreeze_mm_vision_tower,
      group_by_length, tf32, fp16, lazy_preprocess, is_multimodal, mm_use_im_patch_token,
      dataloader_drop_last, logging_first_step, remove_unused_columns, do_train, disable_tqdm;
  std::optional<std::int64_t> data_seed;
  std::optional<double> ddp_timeout;

  template <class Field>
  void fields(Field& field) {
    field("deepspeed", deepspeed, "zero2.json, zero3.json ...: the stage becomes --zero");
    field("mm_tunable_parts", mm_tunable_parts,
          "mm_vision_tower,mm_mlp_adapter,mm_language_model: becomes --tune");
    field("freeze_backbone", freeze_backbone, "true: --tune llm=none");
    field("freeze_mm_mlp_adapter", freeze_mm_mlp_adapter, "true: --tune projector=none");
    field("unfreeze_mm_vision_tower", unfreeze_mm_vision_tower, "true: --tune vision=full");
    field("group_by_length", group_by_length, "true: --group_by_modality_length");
    field("ddp_timeout", ddp_timeout, "becomes --dist_timeout");
    field("data_seed", data_seed, "must be --seed's value, which orders the samples");
    field("lora_bias", lora_bias, "none alone");
    field("mm_use_im_patch_token", mm_use_im_patch_token, "false alone");
    field("is_multimodal", is_multimodal, "true alone");
    field("do_train", do_train, "true alone");
    field("fp16", fp16, "false alone");
    field("logging_strategy", logging_strategy, "steps alone");
    field("tf32", tf32, "products in float32 are exact; --bf16 is the fast way");
    field("attn_implementation", attn_implementation, "one exact attention serves all of them");
    field("lazy_preprocess", lazy_preprocess, "samples are always read when they are needed");
    field("remove_unused_columns", remove_unused_columns, "samples keep what they have");
    field("dataloader_drop_last", dataloader_drop_last,
          "an epoch's last step learns from what is left");
    field("logging_first_step", logging_first_step, "the first logged step is --logging_steps");
    field("disable_tqdm", disable_tqdm, "the bar is shown on terminals alone; --quiet hides it");
  }
};

/// Puts into `config` what `flags` mean, and what the reference and transformers call the
/// optimizer, trackers and the last checkpoint. Returns a line for each flag that is not done to
/// the letter. Throws Error(usage) where a flag asks for what this program does not do, or
/// contradicts a setting; Error(data) where DeepSpeed's file is broken.
std::vector<std::string> apply(const ReferenceFlags& flags, std::uint64_t seed,
                               TrainConfig& config);

}  // namespace llava::train
