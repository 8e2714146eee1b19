// llava train: Stage 1, Stage 2, LoRA or any mix, from settings to a model folder.
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/nn/device.h"
#include "llava/train/final_model.h"
#include "llava/train/output.h"
#include "llava/train/trainer.h"

#include <cstdio>

namespace llava::cli {
namespace {

train::Compute choose_compute(const CommonConfig& common, bool bf16) {
  const auto dtype = nn::choose_dtype(common.dtype);
  expect(dtype != torch::kFloat16, Fault::usage,
         "--dtype float16 overflows in training; take --bf16 or float32");
  expect(!bf16 || dtype != torch::kFloat32, Fault::usage,
         "--bf16 and --dtype float32 contradict each other; give one");
  train::Compute compute;
  compute.device = nn::choose_device(common.device);
  compute.dtype = dtype.value_or(bf16 ? torch::kBFloat16 : torch::kFloat32);
  compute.seed = static_cast<std::uint64_t>(common.seed);
  return compute;
}

}  // namespace

int train(const std::vector<std::string>& words) {
  train::TrainConfig config;
  Args args("train", "train Stage 1, Stage 2, LoRA or any mix of trainable parts", words);
  args.add(config);
  args.optional_value("gradient_checkpointing", "full",
                      {"none", "selective", "full", "true", "false", "True", "False"});
  args.alias("eval_strategy", "--evaluation_strategy");
  args.alias("model_name_or_path", "-m");
  if (!args.parse()) return 0;
  train::check(config);
  nn::set_threads(args.common().threads);
  const auto compute = choose_compute(args.common(), config.model.bf16);
  torch::manual_seed(compute.seed);

  const train::OutputFolder output(config, compute);
  auto start = train::load_model(config.model, compute);
  auto groups = train::choose_stage(start.model, config.stage, config.schedule.learning_rate,
                                    config.optimizer.weight_decay, compute.seed);
  log::info(train::describe_stage(start.model, config.stage, groups));
  auto data =
      train::open_data(config.data, config.model, start, train::template_name(config), compute);
  {
    const dist::ProcessGroup group;
    const auto sync = dist::alone();
    train::Optimizer optimizer(std::move(groups), config.optimizer);
    train::Trainer trainer(config, compute, {start.model, optimizer, data, *sync, group});
    trainer.resume();
    trainer.run();
  }
  train::save_final_model(config, compute, std::move(start), data);
  if (args.common().json) std::puts(Json{{"output_dir", config.loop.output_dir}}.dump().c_str());
  return 0;
}

}  // namespace llava::cli
