#include "llava/train/reference_flags.h"

#include <algorithm>
#include <array>
#include <utility>

namespace llava::train {
namespace {

using Lines = std::vector<std::string>;

template <class Words>
bool is_one_of(const std::string& word, const Words& words) {
  return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

/// A flag that may be given, but with one value alone.
template <class T>
void expect_only(const char* name, const std::optional<T>& value, const T& only, const char* why) {
  expect(!value || *value == only, Fault::usage, "--", name, ": ", why);
}

/// "--name: text", where the flag asks for something else than what is done anyway.
void explain(Lines& lines, const char* name, const std::optional<bool>& flag, bool other,
             const char* text) {
  if (flag == other) lines.push_back(std::string("--") + name + ": " + text);
}

/// Stage and offload of a DeepSpeed config. Source: deepspeed.ai, docs/config-json, ZeRO.
void apply_deepspeed(const std::string& path, dist::SyncConfig& sync, Lines& lines) {
  const Json json = read_json(path);
  expect(json.is_object(), Fault::data, path, ": expected DeepSpeed's settings, an object");
  const Json zero = json.value("zero_optimization", Json::object());
  expect(zero.is_object(), Fault::data, path, ": \"zero_optimization\" is no object");
  const Json stage = zero.value("stage", Json(0));
  expect(
      stage.is_number_integer() && stage.get<std::int64_t>() >= 0 && stage.get<std::int64_t>() <= 3,
      Fault::data, path, ": \"stage\" is ", stage.dump(), ", expected 0 to 3");
  const auto offloads = [&](const char* part) {
    const Json where = zero.value(part, Json());
    const Json device = where.is_object() ? where.value("device", Json("none")) : Json("none");
    expect(device == "none" || device == "cpu", Fault::usage, path, ": ", part, " to ",
           device.dump(), " is not possible; take cpu or none");
    return device == "cpu";
  };
  const auto wanted = stage.get<std::int64_t>();
  expect(sync.zero == 0 || sync.zero == wanted, Fault::usage, "--deepspeed ", path,
         " asks for ZeRO ", wanted, " and --zero for ", sync.zero, "; give one");
  sync.zero = wanted;
  std::string line = "--deepspeed " + path + ": --zero " + std::to_string(wanted);
  if (offloads("offload_optimizer") && wanted > 0) {
    sync.zero_offload_optimizer = true;
    line += " --zero_offload_optimizer";
  }
  if (offloads("offload_param")) line += "; weights stay on the device";
  lines.push_back(line + "; batch, precision and optimizer are those of the command line");
}

/// One more "part=how" of --tune, unless --tune names the part already.
void add_tune(StageConfig& stage, const char* flag, const std::string& part, const std::string& how,
              Lines& lines) {
  for (const auto& item : split_list(stage.tune)) {
    if (item.rfind(part + "=", 0) != 0) continue;
    expect(item == part + "=" + how, Fault::usage, "--", flag, " means ", part, "=", how,
           ", but --tune says ", item, "; give one");
    return;
  }
  stage.tune += (stage.tune.empty() ? "" : ",") + part + "=" + how;
  lines.push_back(std::string("--") + flag + ": --tune " + part + "=" + how);
}

void apply_tunable_parts(const std::string& text, StageConfig& stage, Lines& lines) {
  const std::vector<std::string> known{"mm_vision_tower", "mm_mlp_adapter", "mm_language_model"};
  const auto parts = split_list(text);
  for (const auto& part : parts)
    expect(is_one_of(part, known), Fault::usage, "--mm_tunable_parts: there is no part \"", part,
           "\"", suggestion(part, known),
           "; parts are mm_vision_tower, mm_mlp_adapter and mm_language_model");
  expect(stage.tune.empty() && !stage.tune_mm_mlp_adapter, Fault::usage,
         "--mm_tunable_parts says what learns, as --tune and --tune_mm_mlp_adapter do; give one");
  const auto how = [&](const char* part, const char* learning) {
    return is_one_of(part, parts) ? learning : "none";
  };
  stage.tune = std::string("vision=") + how("mm_vision_tower", "full") +
               ",projector=" + how("mm_mlp_adapter", "full") +
               ",llm=" + how("mm_language_model", stage.lora_enable ? "lora" : "full");
  lines.push_back("--mm_tunable_parts " + text + ": --tune " + stage.tune);
}

void apply_tuning(const ReferenceFlags& flags, StageConfig& stage, Lines& lines) {
  if (flags.mm_tunable_parts) apply_tunable_parts(*flags.mm_tunable_parts, stage, lines);
  if (flags.freeze_backbone.value_or(false))
    add_tune(stage, "freeze_backbone", "llm", "none", lines);
  if (flags.freeze_mm_mlp_adapter.value_or(false))
    add_tune(stage, "freeze_mm_mlp_adapter", "projector", "none", lines);
  if (flags.unfreeze_mm_vision_tower.value_or(false))
    add_tune(stage, "unfreeze_mm_vision_tower", "vision", "full", lines);
}

/// Other names of what there is: optimizers, trackers, the last checkpoint.
void apply_names(TrainConfig& config, Lines& lines) {
  constexpr std::array kAdamW{"adamw_hf", "adamw_apex_fused", "adamw_anyprecision"};
  constexpr std::array kAdamW8{"adamw_bnb_8bit", "paged_adamw_8bit"};
  constexpr std::array kTrackers{"wandb", "all", "comet_ml", "mlflow", "swanlab"};
  const auto rename = [&](const char* flag, std::string& value, const std::string& ours,
                          const char* why) {
    lines.push_back(std::string("--") + flag + " " + value + ": " + ours + why);
    value = ours;
  };
  auto& optim = config.optimizer.optim;
  if (is_one_of(optim, kAdamW)) rename("optim", optim, "adamw_torch_fused", ", the same algorithm");
  if (is_one_of(optim, kAdamW8)) rename("optim", optim, "adamw_8bit", ", the same algorithm");
  auto& report = config.metrics.report_to;
  if (is_one_of(report, kTrackers))
    rename("report_to", report, "tensorboard",
           "; nothing is sent anywhere, files are written in output_dir");
  auto& resume = config.checkpoint.resume_from_checkpoint;
  if (resume == "True" || resume == "true") resume = "last";
  if (resume == "False" || resume == "false") resume.clear();
}

void expect_possible(const ReferenceFlags& flags, std::uint64_t seed) {
  using Word = std::string;
  expect_only<Word>("lora_bias", flags.lora_bias, "none", "biases do not learn; take none");
  expect_only("mm_use_im_patch_token", flags.mm_use_im_patch_token, false,
              "models have no <im_patch> token; take False");
  expect_only("is_multimodal", flags.is_multimodal, true,
              "a sample's pictures are always used; take True, or samples without them");
  expect_only("do_train", flags.do_train, true, "llava train trains; llava run answers");
  expect_only("fp16", flags.fp16, false, "float16 overflows in training; take --bf16 True");
  expect_only<Word>("logging_strategy", flags.logging_strategy, "steps",
                    "take steps, and --logging_steps N");
  expect(!flags.data_seed || static_cast<std::uint64_t>(*flags.data_seed) == seed, Fault::usage,
         "--data_seed: the order of samples follows --seed, which is ", seed, "; give it alone");
  const std::vector<std::string> attentions{"flash_attention_2", "sdpa", "eager"};
  expect(!flags.attn_implementation || is_one_of(*flags.attn_implementation, attentions),
         Fault::usage, "--attn_implementation: \"", flags.attn_implementation.value_or(""),
         "\" is not known", suggestion(flags.attn_implementation.value_or(""), attentions),
         "; take flash_attention_2, sdpa or eager");
}

void explain_rest(const ReferenceFlags& flags, const TrainConfig& config, Lines& lines) {
  explain(lines, "tf32", flags.tf32, true,
          "products in float32 stay exact; with --bf16 there are none to speed up");
  explain(lines, "lazy_preprocess", flags.lazy_preprocess, false,
          "samples are read and encoded when they are needed all the same");
  explain(lines, "remove_unused_columns", flags.remove_unused_columns, true,
          "samples keep all they have");
  explain(lines, "dataloader_drop_last", flags.dataloader_drop_last, true,
          "an epoch's last step learns from what is left, nothing is dropped");
  explain(lines, "disable_tqdm", flags.disable_tqdm, true,
          "the bar is shown on terminals alone; --quiet hides every line");
  if (config.metrics.logging_steps > 1)
    explain(lines, "logging_first_step", flags.logging_first_step, true,
            "the first line is that of step --logging_steps");
  if (flags.attn_implementation)
    lines.push_back("--attn_implementation " + *flags.attn_implementation +
                    ": attention is exact, by the fastest way this machine has");
}

}  // namespace

std::vector<std::string> apply(const ReferenceFlags& flags, std::uint64_t seed,
                               TrainConfig& config) {
  Lines lines;
  expect_possible(flags, seed);
  if (flags.deepspeed) apply_deepspeed(*flags.deepspeed, config.sync, lines);
  apply_tuning(flags, config.stage, lines);
  apply_names(config, lines);
  if (flags.group_by_length.value_or(false)) {
    config.data.group_by_modality_length = true;
    lines.push_back("--group_by_length: --group_by_modality_length true");
  }
  if (flags.ddp_timeout) config.group.dist_timeout = *flags.ddp_timeout;
  explain_rest(flags, config, lines);
  return lines;
}

}  // namespace llava::train
