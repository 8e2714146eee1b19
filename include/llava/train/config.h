// All settings of a training run, made of its parts' own. Names are those of transformers'
// TrainingArguments and of the reference's flags; recipes in configs/ hold what differs from these
// defaults, which are LLaVA-1.5's Stage 2 where the published recipes agree.
#pragma once

#include "llava/dist/gradient_sync.h"
#include "llava/dist/launch.h"
#include "llava/train/checkpoint.h"
#include "llava/train/metrics.h"
#include "llava/train/optimizer.h"
#include "llava/train/schedule.h"
#include "llava/train/stage.h"
#include "llava/train/start.h"

namespace llava::train {

/// How the loop runs.
struct LoopConfig {
  std::string output_dir;
  std::string loss_reduction = "token";
  std::string on_nan = "stop";
  std::string eval_strategy = "no";
  std::int64_t eval_steps = 500;

  template <class Field>
  void fields(Field& field) {
    field("output_dir", output_dir, "folder of everything the run writes");
    field("loss_reduction", loss_reduction,
          "token: mean over the learned tokens of a whole step; micro_batch: mean of its "
          "micro-batches' means, as the reference has it");
    field("on_nan", on_nan,
          "a step whose loss or gradient is not finite is never applied; then: stop, skip, or "
          "rollback to the last checkpoint's weights and go on behind it");
    field("eval_strategy", eval_strategy, "when the validation loss is taken: no, steps or epoch");
    field("eval_steps", eval_steps, "steps from one validation to the next");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const LoopConfig& config);

struct TrainConfig {
  std::string source;
  ModelSource model;
  DataSource data;
  StageConfig stage;
  ScheduleConfig schedule;
  OptimizerConfig optimizer;
  LoopConfig loop;
  CheckpointConfig checkpoint;
  MetricsConfig metrics;
  dist::LaunchConfig launch;
  dist::GroupConfig group;
  dist::SyncConfig sync;

  template <class Field>
  void fields(Field& field) {
    field("source", source, "where this recipe was published, for people; changes nothing");
    model.fields(field);
    data.fields(field);
    stage.fields(field);
    schedule.fields(field);
    optimizer.fields(field);
    loop.fields(field);
    checkpoint.fields(field);
    metrics.fields(field);
    launch.fields(field);
    group.fields(field);
    sync.fields(field);
  }
};

/// Checks every part, and what they say of each other.  Throws Error(usage).
void check(const TrainConfig& config);

/// Whether the decoder may be kept in as few bits as asked.  Throws Error(usage).
void check_bits(const TrainConfig& config);

/// "stage1", "stage2", "lora", or the parts that learn: what the run is called.
std::string run_name(const TrainConfig& config);

/// Chat template of the run; "" is the model's own.
std::string template_name(const TrainConfig& config);

/// One sentence about settings of `before` and `now` (config_json of each) that differ and matter
/// to the weights; "" when a run may go on from one to the other.
std::string describe_changes(const Json& before, const Json& now);

}  // namespace llava::train
