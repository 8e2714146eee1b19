// Planned bytes against those that a training step really takes: every allocation on the CPU is
// counted.
#include "llava/train/flops.h"
#include "llava/train/optimizer.h"
#include "llava/train/planner.h"
#include "llava/train/trainer.h"
#include "support/ranks.h"

#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>

#include <atomic>
#include <cstdio>
#include <sstream>
#include <tuple>

namespace llava::train {
namespace {

/// LibTorch's allocator for the CPU, counting.
struct CountingAllocator : c10::Allocator {
  static inline std::atomic<std::int64_t> now{0}, peak{0};

  struct Block {
    c10::DataPtr memory;
    std::int64_t bytes;
  };
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    now -= block->bytes;
    delete block;
  }
  c10::DataPtr allocate(std::size_t bytes) override {
    auto* block =
        new Block{c10::GetDefaultCPUAllocator()->allocate(bytes), static_cast<std::int64_t>(bytes)};
    now += block->bytes;
    peak = std::max(peak.load(), now.load());
    return {block->memory.get(), block, &release, torch::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

/// Small, but large enough that weights and activations outweigh odds and ends.
PlanRequest mid_size(std::int64_t world, std::int64_t zero, const char* recompute,
                     std::int64_t micro_steps) {
  PlanRequest request;
  request.model = model::named_shape("tiny");
  auto& text = request.model.text;
  text.hidden_size = 256;
  text.intermediate_size = 688;
  text.num_hidden_layers = 6;
  text.num_attention_heads = text.num_key_value_heads = 8;
  text.head_dim = 32;
  text.vocab_size = 2000;
  request.processes = world;
  request.plan.gpu = "cpu";
  request.plan.gpu_memory = "1GB";
  request.plan.num_samples = 1000;
  request.plan.tokens_per_sample = 512;
  request.plan.images_per_sample = 0;
  request.train.sync.zero = zero;
  request.train.sync.ddp_bucket_cap_mb = 1;
  request.train.model.gradient_checkpointing = recompute;
  request.train.data.per_device_train_batch_size = 1;
  request.train.data.gradient_accumulation_steps = micro_steps;
  request.samples = assumed_samples(request.plan, request.model);
  request.samples.learned = 512;
  return request;
}

input::Batch batch_of(const PlanRequest& request) {
  input::Batch batch;
  batch.ids = torch::arange(512, torch::kInt64) % request.model.text.vocab_size;
  batch.labels = batch.ids.clone();
  batch.starts = {0, 512};
  batch.example_ids = {"one"};
  return batch;
}

TEST(Rank, DISABLED_TakesBytes) {
  support::play([] {
    CountingAllocator counting;
    c10::SetCPUAllocator(&counting, /*priority=*/100);
    const dist::ProcessGroup group(support::group_config(), dist::place_from_environment());
    group.note(100);
    // With two micro-steps gradients wait while activations grow.
    for (const auto& [zero, recompute, micro_steps] : {std::tuple{0, "none", 2},
                                                       {0, "none", 1},
                                                       {1, "none", 2},
                                                       {2, "none", 2},
                                                       {2, "none", 1},
                                                       {3, "none", 2},
                                                       {3, "full", 2},
                                                       {3, "full", 1}}) {
      const auto request = mid_size(group.world_size(), zero, recompute, micro_steps);
      const auto nothing = CountingAllocator::now.load();
      model::Llava model(request.model, torch::TensorOptions(torch::kFloat32));
      {
        const torch::NoGradGuard guard;
        for (auto& parameter : model->parameters()) parameter.normal_(0, 0.02);
      }
      model->llama->recompute = read_recompute(recompute);
      auto groups = choose_stage(model, request.train.stage, 1e-3, 0, 1);
      dist::Weights weights;
      for (const auto& item : model->named_parameters()) {
        weights.parameters.emplace_back(item.key(), item.value());
        const bool in_layer = item.key().rfind("llama.layers.", 0) == 0;
        weights.layers.push_back(in_layer ? std::stoll(item.key().substr(13)) : -1);
      }
      const auto sync = dist::make_gradient_sync(request.train.sync, group, weights);
      model->llama->before_layer = [&](auto layer, const auto& x) { sync->before_layer(layer, x); };
      model->llama->after_layer = [&](auto layer, const auto& x) { sync->after_layer(layer, x); };
      Optimizer optimizer(owned_groups(*sync, std::move(groups)), request.train.optimizer);
      // Gloo's threads let go of the last exchange's tensors when they get to it.
      auto resting = CountingAllocator::now.load() - nothing;
      for (int i = 0; i < 5; ++i) {
        group.barrier("rest");
        resting = std::min(resting, CountingAllocator::now.load() - nothing);
      }
      CountingAllocator::peak = CountingAllocator::now.load();
      const auto batch = batch_of(request);
      for (int i = 1; i <= micro_steps; ++i)
        sync->backward(model->loss(batch), /*last_micro_step=*/i == micro_steps);
      const auto norm = sync->total_norm(optimizer.gradient_norm());
      optimizer.step(1, norm, torch::zeros({}));
      optimizer.zero_grad();
      sync->publish();
      const auto peak = CountingAllocator::peak.load() - nothing;
      const auto plan = make_plan(request);
      std::printf("\nzero %d %s %d resting %.0f planned %.0f peak %.0f planned %.0f\n", zero,
                  recompute, micro_steps, static_cast<double>(resting),
                  plan.weights + plan.optimizer + plan.vision, static_cast<double>(peak),
                  plan.total());
    }
    return 0;
  });
}

TEST(PlannedBytes, AreMeasuredOnes) {
  const auto outcomes = support::run_ranks({.scenario = "TakesBytes", .ranks = 2});
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::istringstream lines(outcome.out);
    int found = 0;
    for (std::string line; std::getline(lines, line);) {
      double zero, resting, planned_resting, peak, planned_peak;
      char recompute[16];
      int micro_steps;
      if (std::sscanf(line.c_str(), "zero %lf %15s %d resting %lf planned %lf peak %lf planned %lf",
                      &zero, recompute, &micro_steps, &resting, &planned_resting, &peak,
                      &planned_peak) != 7)
        continue;
      ++found;
      EXPECT_NEAR(planned_resting, resting, 0.05 * resting) << line;
      EXPECT_NEAR(planned_peak, peak, 0.05 * peak) << line;
    }
    EXPECT_EQ(found, 8);
  }
}

}  // namespace
}  // namespace llava::train
