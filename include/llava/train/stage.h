// What learns: Stage 1 (projector), Stage 2 (projector and LLM), LoRA, or any mix, with a learning
// rate and a weight decay for each part.
#pragma once

#include "llava/dist/gradient_sync.h"
#include "llava/model/llava.h"
#include "llava/train/optimizer.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::train {

struct StageConfig {
  std::string tune = "";
  bool tune_mm_mlp_adapter = false;
  std::optional<double> mm_projector_lr = {}, mm_vision_tower_lr = {};
  bool lora_enable = false;
  std::int64_t lora_r = 64;
  double lora_alpha = 16;
  double lora_dropout = 0.05;

  template <class Field>
  void fields(Field& field) {
    field("tune", tune,
          "what learns: vision=none|full,projector=none|full,llm=none|full|lora; parts left out "
          "are as the two options below say");
    field("tune_mm_mlp_adapter", tune_mm_mlp_adapter, "Stage 1: the projector alone");
    field("lora_enable", lora_enable, "the LLM learns by LoRA; the projector learns in full");
    field("lora_r", lora_r, "rank of LoRA");
    field("lora_alpha", lora_alpha, "LoRA is scaled by lora_alpha / lora_r");
    field("lora_dropout", lora_dropout, "dropout in front of LoRA");
    field("mm_projector_lr", mm_projector_lr, "learning rate of the projector; null: the common");
    field("mm_vision_tower_lr", mm_vision_tower_lr, "that of the vision tower; null: the common");
  }
};

enum class Tuning { none, full, lora };

/// How each part learns.
struct Tune {
  Tuning vision = Tuning::none, projector = Tuning::full, llm = Tuning::full;

  bool is_projector_only() const {
    return vision == Tuning::none && projector == Tuning::full && llm == Tuning::none;
  }
};

/// Throws Error(usage) naming the part or word that is not known, and where settings disagree.
Tune read_tune(const StageConfig& config);

/// Freezes the model, then makes what `config` names learn: LoRA is attached, from `seed`, to a
/// model that has none yet. Returns the groups of parameters that learn.
/// Where the reference decides: image_newline learns with the LLM; parts of the tower behind the
/// selected layer never do; norms and biases have no decay.
/// Source: haotian-liu/LLaVA 1.2.2, llava_trainer.py (groups) and train.py (what is frozen).
std::vector<ParameterGroup> choose_stage(model::Llava& model, const StageConfig& config,
                                         double learning_rate, double weight_decay,
                                         std::uint64_t seed);

/// The same groups, with what this rank updates of each.
std::vector<ParameterGroup> owned_groups(dist::GradientSync& sync,
                                         std::vector<ParameterGroup> groups);

/// What learns, as a table for people: part, how, parameters, learning rate, weight decay, dtype.
std::string describe_stage(const model::Llava& model, const StageConfig& config,
                           const std::vector<ParameterGroup>& groups);

}  // namespace llava::train
