// Whole training runs on several processes: ZeRO of every stage is DDP, and a run goes on with
// other numbers of processes.
#include "support/ranks.h"

#include "tiny_run.h"

#include <gmock/gmock.h>

#include <cstdio>
#include <sstream>

namespace llava::train {
namespace {

using support::number;
using support::run_ranks;
using support::text;

/// A run as cli/train puts it together, in the parent's world.
class SharedRun {
 public:
  SharedRun(const dist::ProcessGroup& group, TrainConfig wanted)
      : config_(std::move(wanted)), group_(group) {
    compute_.rank = group.rank();
    compute_.world_size = group.world_size();
    check(config_);
    torch::manual_seed(compute_.seed);
    output_.emplace(config_, compute_);
    start_ = load_model(config_.model, compute_);
    auto groups = choose_stage(start_.model, config_.stage, config_.schedule.learning_rate,
                               config_.optimizer.weight_decay, compute_.seed);
    settle_layout(start_);
    data_ = open_data(config_.data, config_.model, start_, template_name(config_), compute_);
    for (const auto& item : start_.model->named_parameters()) {
      weights_.parameters.emplace_back(item.key(), item.value());
      const bool in_layer = item.key().starts_with("llama.layers.");
      weights_.layers.push_back(in_layer ? std::stoll(item.key().substr(13)) : -1);
    }
    sync_ = dist::make_gradient_sync(config_.sync, group, weights_);
    optimizer_.emplace(owned_groups(*sync_, std::move(groups)), config_.optimizer);
    trainer_.emplace(
        config_, compute_,
        TrainerParts{start_.model, facts_of(start_.model), *optimizer_, data_, *sync_, group});
    trainer_->resume();
  }

  /// Steps to the end, or through step `last`, and saves.
  void steps_through(std::int64_t last) {
    while (trainer_->progress().step < std::min(last, trainer_->total_steps())) {
      const auto report = trainer_->step();
      losses.push_back(report.figures[0].item<float>());
    }
    write_checkpoint(config_.loop.output_dir, trainer_->checkpoint(),
                     {compute_.rank, compute_.world_size, "test"}, [] { return false; });
    group_.barrier("saved");
  }

  /// All weights on rank 0; nothing can be computed afterwards.
  torch::Tensor weights() {
    sync_->gather_on_host();
    std::vector<torch::Tensor> flat;
    for (const auto& item : start_.model->named_parameters())
      if (item.value().requires_grad() && group_.rank() == 0)
        flat.push_back(item.value().detach().flatten());
    return flat.empty() ? torch::empty({0}) : torch::cat(flat);
  }

  std::vector<double> losses;

 private:
  TrainConfig config_;
  const dist::ProcessGroup& group_;
  Compute compute_;
  std::optional<OutputFolder> output_;
  model::Pretrained start_;
  TrainingData data_;
  dist::Weights weights_;
  std::unique_ptr<dist::GradientSync> sync_;
  std::optional<Optimizer> optimizer_;
  std::optional<Trainer> trainer_;
};

TrainConfig shared_settings(const std::string& world, const std::string& output) {
  TrainConfig config;
  config.model.model_name_or_path = world + "/model";
  config.model.version = "v1";
  config.data.data_path = world + "/set.json";
  config.data.image_folder = world + "/images";
  config.data.per_device_train_batch_size = 1;
  config.data.dataloader_num_workers = 1;
  config.schedule.learning_rate = 1e-3;
  config.loop.output_dir = world + "/" + output;
  config.metrics.report_to = "none";
  return config;
}

/// Of all weights together, relative to their norm: Adam blows the rounding of a gradient that is
/// nearly zero up to a step of full size, so a single weight may differ more.
double relative_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

/// Every ZeRO stage, in turn; the samples of one rank have no pictures in every second step.
TEST(Rank, DISABLED_TrainsInEveryStage) {
  support::play([] {
    const dist::ProcessGroup group(support::group_config(), dist::place_from_environment());
    torch::Tensor before, ddp;
    for (const std::int64_t zero : {0, 1, 2, 3}) {
      auto config = shared_settings(text("LLAVA_TEST_WORLD"), "zero" + std::to_string(zero));
      config.data.shuffle = false;
      config.data.sampler = "reference";
      config.schedule.max_steps = 20;
      config.sync.zero = zero;
      SharedRun run(group, config);
      if (!before.defined()) before = run.weights().clone();
      run.steps_through(20);
      const auto after = run.weights();
      if (group.rank() > 0) continue;
      if (zero == 0) ddp = after.clone();
      std::printf("\nzero %ld steps %zu differs %.3g, moved %.3g\n", zero, run.losses.size(),
                  relative_difference(after, ddp), relative_difference(before, ddp));
    }
    return 0;
  });
}

TEST(Ranks, ZeroOfEveryStageIsDdpWithPicturesOnSomeRanksOnly) {
  const test::TinyWorld world;
  const auto outcomes = run_ranks({.scenario = "TrainsInEveryStage",
                                   .ranks = 2,
                                   .environment = {{"LLAVA_TEST_WORLD", world.folder().path()}}});
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.code, 0) << outcome.err;
  std::istringstream lines(outcomes[0].out);
  int found = 0;
  for (std::string line; std::getline(lines, line);) {
    double zero = 0, steps = 0, differs = 1, moved = 0;
    if (std::sscanf(line.c_str(), "zero %lf steps %lf differs %lf, moved %lf", &zero, &steps,
                    &differs, &moved) != 4)
      continue;
    EXPECT_EQ(steps, 20) << line;
    EXPECT_LT(differs, 1e-6) << line;
    EXPECT_GT(moved, 1e-3) << line;
    ++found;
  }
  EXPECT_EQ(found, 4);
}

/// From wherever its output folder stands through step LLAVA_TEST_STEP; prints losses and, at the
/// end, weights.
TEST(Rank, DISABLED_GoesOn) {
  support::play([] {
    const dist::ProcessGroup group(support::group_config(), dist::place_from_environment());
    auto config = shared_settings(text("LLAVA_TEST_WORLD"), text("LLAVA_TEST_OUTPUT"));
    config.data.gradient_accumulation_steps = 4 / group.world_size();
    config.schedule.num_train_epochs = 2;
    config.sync.zero = static_cast<std::int64_t>(number("LLAVA_TEST_ZERO", 0));
    config.checkpoint.resume_from_checkpoint = "last";
    SharedRun run(group, config);
    run.steps_through(static_cast<std::int64_t>(number("LLAVA_TEST_STEP", 8)));
    const auto weights = run.weights();
    if (group.rank() > 0) return 0;
    for (const double loss : run.losses) std::printf("\nloss %.9g", loss);
    for (std::int64_t i = 0; i < weights.numel(); i += 7)
      std::printf("\nweight %.9g", weights[i].item<double>());
    std::printf("\n");
    return 0;
  });
}

struct End {
  std::vector<double> losses, weights;
};

End go_on(const test::TinyWorld& world, const std::string& output, int ranks, int zero, int step) {
  const auto outcomes = run_ranks({.scenario = "GoesOn",
                                   .ranks = ranks,
                                   .environment = {{"LLAVA_TEST_WORLD", world.folder().path()},
                                                   {"LLAVA_TEST_OUTPUT", output},
                                                   {"LLAVA_TEST_ZERO", std::to_string(zero)},
                                                   {"LLAVA_TEST_STEP", std::to_string(step)}}});
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.code, 0) << outcome.err;
  End end;
  std::istringstream lines(outcomes[0].out);
  for (std::string line; std::getline(lines, line);) {
    double value = 0;
    if (std::sscanf(line.c_str(), "loss %lf", &value) == 1) end.losses.push_back(value);
    if (std::sscanf(line.c_str(), "weight %lf", &value) == 1) end.weights.push_back(value);
  }
  return end;
}

/// Four ranks with ZeRO 3, then two with ZeRO 1, then one alone: as if one had made all steps.
TEST(Ranks, RunGoesOnWithOtherNumbersOfRanksAndOtherStages) {
  const test::TinyWorld world;
  const auto alone = go_on(world, "alone", 1, 0, 8);
  ASSERT_EQ(alone.losses.size(), 8U);
  std::vector<double> losses;
  End end;
  for (const auto& [ranks, zero, step] : {std::tuple{4, 3, 3}, {2, 1, 6}, {1, 0, 8}}) {
    end = go_on(world, "shrinking", ranks, zero, step);
    losses.insert(losses.end(), end.losses.begin(), end.losses.end());
  }
  ASSERT_EQ(losses.size(), 8U);
  for (std::size_t i = 0; i < losses.size(); ++i)
    EXPECT_NEAR(losses[i], alone.losses[i], 1e-5) << i;
  ASSERT_EQ(end.weights.size(), alone.weights.size());
  for (std::size_t i = 0; i < end.weights.size(); ++i)
    ASSERT_NEAR(end.weights[i], alone.weights[i], 1e-5) << i;
}

}  // namespace
}  // namespace llava::train
