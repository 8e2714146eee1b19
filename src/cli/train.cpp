// llava train: Stage 1, Stage 2, LoRA or any mix, from settings to a model folder.
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/nn/device.h"
#include "llava/train/final_model.h"
#include "llava/train/output.h"
#include "llava/train/trainer.h"

#include "train_options.h"

#include <cstdio>

namespace llava::cli {
namespace {

torch::ScalarType training_dtype(const std::string& name, bool bf16) {
  const auto dtype = nn::choose_dtype(name);
  expect(dtype != torch::kFloat16, Fault::usage,
         "--dtype float16 overflows in training; take --bf16 or float32");
  expect(!bf16 || dtype != torch::kFloat32, Fault::usage,
         "--bf16 and --dtype float32 contradict each other; give one");
  return dtype.value_or(bf16 ? torch::kBFloat16 : torch::kFloat32);
}

/// GPUs that this run may use, looked for without opening CUDA where --device says not to.
std::int64_t visible_gpus(const std::string& device) {
  if (device == "cpu") return 0;
  if (device.rfind("cuda:", 0) == 0) return 1;
  return static_cast<std::int64_t>(nn::cuda_report(/*open_anyway=*/false).devices.size());
}

/// This process's device: with several processes each takes a GPU of its own.
torch::Device device_of(const std::string& name, const dist::Place& place) {
  const auto device = nn::choose_device(name);
  const bool is_numbered = name.rfind("cuda:", 0) == 0;
  if (device.is_cpu() || place.world_size == 1 || is_numbered) return device;
  return nn::choose_device("cuda:" + std::to_string(dist::device_index(place, visible_gpus(name))));
}

/// The model's parameters as ZeRO wants to know them.
dist::Weights weights_of(const model::Llava& model) {
  constexpr std::string_view layers = "llama.layers.";
  dist::Weights weights;
  for (const auto& item : model->named_parameters()) {
    weights.parameters.emplace_back(item.key(), item.value());
    const bool in_layer = item.key().rfind(layers, 0) == 0;
    weights.layers.push_back(in_layer ? std::stoll(item.key().substr(layers.size())) : -1);
  }
  return weights;
}

/// Everything after this process knows its place.
void train_here(const train::TrainConfig& config, const train::Compute& compute,
                const dist::ProcessGroup& group) {
  group.expect_same(train::effective_settings(config, compute).dump(1), "the settings");
  const train::OutputFolder output(config, compute);
  auto start = train::load_model(config.model, compute);
  auto groups = train::choose_stage(start.model, config.stage, config.schedule.learning_rate,
                                    config.optimizer.weight_decay, compute.seed);
  train::settle_layout(start);
  log::info(train::describe_stage(start.model, config.stage, groups));
  auto data =
      train::open_data(config.data, config.model, start, train::template_name(config), compute);
  const auto facts = train::facts_of(start.model);
  const auto weights = weights_of(start.model);
  const auto sync = dist::make_gradient_sync(config.sync, group, weights);
  {
    train::Optimizer optimizer(train::owned_groups(*sync, std::move(groups)), config.optimizer);
    train::Trainer trainer(config, compute, {start.model, facts, optimizer, data, *sync, group});
    trainer.resume();
    trainer.run();
  }
  train::save_final_model(config, compute, std::move(start), data, *sync, group);
}

}  // namespace

int train(const std::vector<std::string>& words) {
  train::TrainConfig config;
  Args args("train", "train Stage 1, Stage 2, LoRA or any mix of trainable parts", words);
  train::ReferenceFlags flags;
  add_train_options(args, config, flags);
  if (!args.parse()) return 0;
  const auto notes = train::apply(flags, static_cast<std::uint64_t>(args.common().seed), config);
  train::check(config);
  dist::let_waiting_threads_sleep();
  const auto& common = args.common();
  train::Compute compute;
  compute.dtype = training_dtype(common.dtype, config.model.bf16);
  compute.seed = static_cast<std::uint64_t>(common.seed);
  if (const auto code = dist::launch(config.launch, visible_gpus(common.device))) return *code;

  const auto place = dist::place_from_environment();
  log::set_rank(static_cast<int>(place.rank), static_cast<int>(place.world_size));
  if (place.rank == 0)
    for (const auto& note : notes) log::info(note);
  compute.rank = place.rank;
  compute.world_size = place.world_size;
  compute.device = device_of(common.device, place);
  nn::set_threads(common.threads);
  torch::manual_seed(compute.seed + static_cast<std::uint64_t>(place.rank));
  const dist::ProcessGroup group(config.group, place, compute.device);
  try {
    train_here(config, compute, group);
  } catch (const std::exception& error) {
    group.leave_because(error.what());
    throw;
  }
  if (common.json && place.rank == 0)
    std::puts(Json{{"output_dir", config.loop.output_dir}}.dump().c_str());
  return 0;
}

}  // namespace llava::cli
