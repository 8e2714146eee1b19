// Learning rate as a function of the step. Shapes and names are those of transformers'
// optimization.py (get_*_schedule_with_warmup) and its TrainingArguments.
#pragma once

#include <cstdint>
#include <string>

namespace llava::train {

struct ScheduleConfig {
  double learning_rate = 2e-5;
  std::string lr_scheduler_type = "cosine";
  double warmup_ratio = 0.03;
  std::int64_t warmup_steps = 0;
  double num_train_epochs = 1;
  std::int64_t max_steps = 0;

  template <class Field>
  void fields(Field& field) {
    field("learning_rate", learning_rate, "peak learning rate");
    field("lr_scheduler_type", lr_scheduler_type,
          "cosine, linear, constant or constant_with_warmup");
    field("warmup_ratio", warmup_ratio, "share of all steps spent rising from 0 to learning_rate");
    field("warmup_steps", warmup_steps, "steps of that rise; above 0 it replaces warmup_ratio");
    field("num_train_epochs", num_train_epochs, "times the training set is gone through");
    field("max_steps", max_steps, "optimizer steps; above 0 it replaces num_train_epochs");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const ScheduleConfig& config);

/// Optimizer steps of the whole run.
std::int64_t total_steps(const ScheduleConfig& config, std::int64_t steps_per_epoch);

/// What every group's peak learning rate is multiplied by in step `step`, counted from 0: with
/// warm-up the first step's is 0, as the reference's is.
double rate_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t total);

}  // namespace llava::train
