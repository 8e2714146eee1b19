#include "llava/train/config.h"

#include <algorithm>

namespace llava::train {
namespace {

void expect_one_of(const std::string& name, const std::string& value,
                   const std::vector<std::string>& choices) {
  std::string listed;
  for (const auto& choice : choices) listed += (listed.empty() ? "" : ", ") + choice;
  expect(std::find(choices.begin(), choices.end(), value) != choices.end(), Fault::usage, "--",
         name, ": \"", value, "\" is not known", suggestion(value, choices), "; take one of ",
         listed);
}

/// Settings that may change where a run goes on: they do not touch what is learned. Paths may,
/// because what is behind them is compared instead.
constexpr const char* kMayChange[] = {
    "source",
    "model_name_or_path",
    "model_base",
    "vision_tower",
    "pretrain_mm_mlp_adapter",
    "lora_weight_path",
    "gradient_checkpointing",
    "data_path",
    "image_folder",
    "video_folder",
    "per_device_train_batch_size",  // the global batch is compared
    "gradient_accumulation_steps",
    "dataloader_num_workers",
    "on_bad_image",
    "eval_data_path",
    "per_device_eval_batch_size",
    "output_dir",
    "on_nan",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "logging_steps",
    "report_to",
    "run_name",
    "nproc_per_node",
    "dist_backend",
    "dist_timeout",
    "dist_check_steps",
    "dist_link_speed",
    "zero",
    "zero_offload_optimizer",
    "ddp_bucket_cap_mb"};

}  // namespace

void check(const LoopConfig& config) {
  expect(!config.output_dir.empty(), Fault::usage,
         "--output_dir is missing: the folder for results");
  expect_one_of("loss_reduction", config.loss_reduction, {"token", "micro_batch"});
  expect_one_of("on_nan", config.on_nan, {"stop", "skip", "rollback"});
  expect_one_of("eval_strategy", config.eval_strategy, {"no", "steps", "epoch"});
  expect(config.eval_steps > 0, Fault::usage, "--eval_steps: ", config.eval_steps,
         " is not a number of steps; take 1 or more, or --eval_strategy no");
}

void check_bits(const TrainConfig& config) {
  const Tune tune = read_tune(config.stage);
  const auto bits = config.model.bits;
  expect(bits == 16 || bits == 8 || bits == 4, Fault::usage, "--bits: ", bits,
         " is not possible; take 16, 8 or 4");
  expect(bits == 16 || tune.llm == Tuning::lora, Fault::usage, "--bits ", bits,
         " keeps the decoder frozen; give --lora_enable too");
}

void check(const TrainConfig& config) {
  check(config.model);
  check(config.data);
  check_bits(config);
  check(config.schedule);
  check(config.optimizer);
  check(config.loop);
  check(config.checkpoint);
  check(config.metrics);
  check(config.launch);
  check(config.group);
  check(config.sync);
  const bool has_validation = !config.data.eval_data_path.empty() || config.data.val_size > 0;
  expect(config.loop.eval_strategy == "no" || has_validation, Fault::usage, "--eval_strategy ",
         config.loop.eval_strategy,
         " needs samples to validate on; give --val_size or --eval_data_path");
  expect(config.loop.on_nan != "rollback" || config.checkpoint.save_strategy != "no", Fault::usage,
         "--on_nan rollback needs checkpoints to go back to; --save_strategy no makes none");
}

std::string run_name(const TrainConfig& config) {
  if (!config.metrics.run_name.empty()) return config.metrics.run_name;
  const Tune tune = read_tune(config.stage);
  if (tune.is_projector_only()) return "stage1";
  if (tune.llm == Tuning::lora) return "lora";
  if (tune.projector == Tuning::full && tune.llm == Tuning::full) return "stage2";
  return "train";
}

std::string template_name(const TrainConfig& config) {
  if (!config.model.version.empty()) return config.model.version;
  return read_tune(config.stage).is_projector_only() ? "plain" : "";
}

std::string describe_changes(const Json& before, const Json& now) {
  std::string changes;
  for (const auto& [name, value] : now.items()) {
    const auto is_name = [&name = name](const char* other) { return name == other; };
    if (std::any_of(std::begin(kMayChange), std::end(kMayChange), is_name)) continue;
    const Json old = before.value(name, Json());
    if (old == value) continue;
    changes +=
        (changes.empty() ? "" : ", ") + name + " was " + old.dump() + " and is " + value.dump();
  }
  return changes;
}

}  // namespace llava::train
