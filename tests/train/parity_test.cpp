// One step, and 20, equal what transformers, torch and peft do; see tests/golden/train/README.md.
#include "llava/nn/loss.h"
#include "llava/train/optimizer.h"
#include "llava/train/schedule.h"
#include "llava/train/stage.h"
#include "llava/weights/safetensors.h"
#include "tiny_training.h"

#include <gtest/gtest.h>

namespace llava::train {
namespace {

constexpr double kLossError = 1e-5;      // absolute; losses are near 4.5
constexpr double kGradientError = 1e-4;  // relative to the gradient's norm
constexpr double kNoise = 1e-7;          // where a gradient is zero but for rounding
constexpr double kWeightError = 1e-4;    // absolute, after 20 steps

/// A bias of keys shifts all scores of a query alike, so its gradient is rounding noise, which Adam
/// blows up to steps of full size.
bool is_noise(const std::string& name) { return name.ends_with("k_proj.bias"); }

struct Case {
  const char *stage, *projector;
};

StageConfig stage_of(const std::string& stage) {
  StageConfig config;
  config.lora_r = 4;
  config.lora_alpha = 8;
  config.lora_dropout = 0;
  config.tune_mm_mlp_adapter = stage == "stage1";
  config.lora_enable = stage == "lora";
  if (stage == "all") config.tune = "vision=full,projector=full,llm=full";
  return config;
}

class Parity : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    golden = weights::load_safetensors(std::string(LLAVA_GOLDEN "/") + GetParam().stage + "_" +
                                       GetParam().projector + ".safetensors");
    model = test::model_by_name(GetParam().projector);
    groups = choose_stage(model, stage_of(GetParam().stage), 2e-3, 0.1, 0);
    for (auto& group : groups)
      for (auto& [name, parameter] : group.parameters) test::fill_by_name(name, parameter);
    for (const auto& examples : test::golden_examples())
      batches.push_back(input::collate(examples));
    if (GetParam().stage == std::string("stage1")) batches.pop_back();  // nothing to learn from
  }

  double golden_number(const std::string& name, std::int64_t index) {
    return golden.at(name)[index].item<float>();
  }

  weights::StateDict golden;
  model::Llava model{nullptr};
  std::vector<ParameterGroup> groups;
  std::vector<input::Batch> batches;
};

TEST_P(Parity, LossAndGradientsOfOneStep) {
  std::int64_t compared = 0;
  for (std::size_t number = 0; number < batches.size(); ++number) {
    const auto loss = model->loss(batches[number]);
    EXPECT_NEAR(loss.item<float>(), golden_number("first_losses", number), kLossError) << number;
    loss.backward();
    for (const auto& group : groups) {
      for (const auto& [name, parameter] : group.parameters) {
        const auto key = "grad." + std::to_string(number) + "." + name;
        if (!golden.contains(key)) continue;
        ASSERT_TRUE(parameter.grad().defined()) << key;
        const auto& want = golden.at(key);
        EXPECT_LE((parameter.grad() - want).norm().item<float>(),
                  kGradientError * want.norm().item<float>() + kNoise)
            << key;
        ++compared;
      }
    }
    model->zero_grad();
  }
  std::int64_t recorded = 0;
  for (const auto& [name, tensor] : golden) recorded += name.starts_with("grad.");
  EXPECT_EQ(compared, recorded);
}

TEST_P(Parity, WeightsAfterTwentySteps) {
  const ScheduleConfig schedule{.learning_rate = 2e-3, .warmup_steps = 2};
  Optimizer optimizer(groups, {});
  for (std::int64_t step = 0; step < 20; ++step) {
    const auto loss = model->loss(batches[static_cast<std::size_t>(step) % batches.size()]);
    loss.backward();
    const auto norm = optimizer.gradient_norm();
    EXPECT_NEAR(loss.item<float>(), golden_number("losses", step), 1e-4) << step;
    EXPECT_NEAR(norm.item<float>(), golden_number("norms", step), 1e-3) << step;
    optimizer.step(rate_factor(schedule, step, 20), norm, torch::zeros({}));
    optimizer.zero_grad();
  }
  std::int64_t compared = 0;
  for (const auto& group : groups) {
    for (const auto& [name, parameter] : group.parameters) {
      const auto difference = (parameter - golden.at("after." + name)).abs().max().item<float>();
      EXPECT_LE(difference, is_noise(name) ? 1e-2 : kWeightError) << name;
      ++compared;
    }
  }
  std::int64_t recorded = 0;
  for (const auto& [name, tensor] : golden) recorded += name.starts_with("after.");
  EXPECT_EQ(compared, recorded);
}

INSTANTIATE_TEST_SUITE_P(Cases, Parity,
                         ::testing::Values(Case{"stage1", "mlp2x_gelu"}, Case{"stage1", "linear"},
                                           Case{"stage2", "mlp2x_gelu"}, Case{"stage2", "linear"},
                                           Case{"lora", "mlp2x_gelu"}, Case{"lora", "linear"},
                                           Case{"all", "mlp2x_gelu"}),
                         [](const auto& info) {
                           return std::string(info.param.stage) + "_" + info.param.projector;
                         });

/// Sum over learned tokens of batches, divided by all of them, is the mean of one large batch.
TEST(Accumulation, OfKBatchesIsOneBatch) {
  const auto parts = test::golden_examples();
  std::vector<input::Example> all;
  for (const auto& examples : parts) all.insert(all.end(), examples.begin(), examples.end());
  const auto gradients = [&](bool accumulate) {
    auto model = test::model_by_name("mlp2x_gelu");
    const auto groups = choose_stage(model, {}, 1, 0, 0);
    if (accumulate) {
      const auto learned = static_cast<double>(input::collate(all).num_learned());
      for (const auto& examples : parts)
        (model->loss(input::collate(examples), /*sum=*/true) / learned).backward();
    } else {
      model->loss(input::collate(all)).backward();
    }
    std::vector<torch::Tensor> grads;
    for (const auto& group : groups)
      for (const auto& [name, parameter] : group.parameters) grads.push_back(parameter.grad());
    return grads;
  };
  const auto one = gradients(false), several = gradients(true);
  for (std::size_t i = 0; i < one.size(); ++i)
    EXPECT_LE((one[i] - several[i]).norm().item<float>(),
              1e-5 * one[i].norm().item<float>() + 1e-8);
}

/// A flat batch computes what its rows compute one by one: loss and gradients.
TEST(FlatBatch, IsItsRowsOneByOne) {
  for (const auto& examples : test::golden_examples()) {
    auto model = test::model_by_name("mlp2x_gelu");
    const auto groups = choose_stage(model, {}, 1, 0, 0);
    std::vector<torch::Tensor> flat;
    const auto loss = model->loss(input::collate(examples), /*sum=*/true);
    loss.backward();
    for (const auto& group : groups)
      for (const auto& [name, parameter] : group.parameters)
        flat.push_back(parameter.grad().defined() ? parameter.grad().clone() : torch::Tensor());
    model->zero_grad();
    double sum = 0;
    for (const auto& example : examples) {
      const auto one = model->loss(input::collate({example}), /*sum=*/true);
      sum += one.item<float>();
      one.backward();
    }
    EXPECT_NEAR(loss.item<float>(), sum, 1e-4);
    std::size_t i = 0;
    for (const auto& group : groups) {
      for (const auto& [name, parameter] : group.parameters) {
        const auto& want = flat[i++];
        ASSERT_EQ(want.defined(), parameter.grad().defined()) << name;
        if (want.defined())
          EXPECT_LE((parameter.grad() - want).norm().item<float>(),
                    1e-5 * want.norm().item<float>() + 1e-6)
              << name;
      }
    }
  }
}

/// Recomputation changes no bit of any gradient.
TEST(Recomputation, ChangesNoGradient) {
  const auto examples = test::golden_examples();
  std::vector<std::vector<torch::Tensor>> grads;
  for (const auto kind : {nn::Recompute::none, nn::Recompute::selective, nn::Recompute::full}) {
    auto model = test::model_by_name("mlp2x_gelu");
    const auto groups =
        choose_stage(model, {.tune = "vision=full,projector=full,llm=full"}, 1, 0, 0);
    model->llama->recompute = model->vision->recompute = kind;
    model->loss(input::collate(examples[2])).backward();
    auto& kept = grads.emplace_back();
    for (const auto& group : groups)
      for (const auto& [name, parameter] : group.parameters) kept.push_back(parameter.grad());
  }
  for (std::size_t i = 0; i < grads[0].size(); ++i) {
    EXPECT_TRUE(torch::equal(grads[0][i], grads[2][i]));
    EXPECT_TRUE(torch::allclose(grads[0][i], grads[1][i], 1e-5, 1e-7));
  }
}

}  // namespace
}  // namespace llava::train
