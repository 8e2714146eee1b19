#include "llava/train/optimizer.h"

#include "../../src/train/eight_bit.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <cmath>

namespace llava::train {
namespace {

using support::error_of;
using ::testing::HasSubstr;

torch::Tensor no_skip() { return torch::zeros({}); }

/// AdamW for one number, word for word as torch.optim.AdamW documents it, in double.
struct ScalarAdam {
  double weight, m = 0, v = 0;
  int t = 0;
  void step(double g, double lr, double decay, double b1 = 0.9, double b2 = 0.999) {
    ++t;
    weight -= lr * decay * weight;
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    weight -= lr * (m / (1 - std::pow(b1, t))) / (std::sqrt(v / (1 - std::pow(b2, t))) + 1e-8);
  }
};

/// A parameter of these values in group "part".
ParameterGroup group_of(const torch::Tensor& parameter, double lr, double decay = 0) {
  return {"part", lr, decay, {{"w", parameter}}};
}

TEST(Optimizer, IsAdamWWithDecoupledDecay) {
  auto w = torch::tensor({1.0F, -2.0F}).requires_grad_();
  Optimizer optimizer({group_of(w, 0.1, 0.5)}, {.max_grad_norm = 0});
  ScalarAdam first{1.0}, second{-2.0};
  for (int step = 0; step < 20; ++step) {
    const double g1 = std::sin(step), g2 = 3 - 0.1 * step, factor = 1 - 0.04 * step;
    w.mutable_grad() = torch::tensor({static_cast<float>(g1), static_cast<float>(g2)});
    optimizer.step(factor, optimizer.gradient_norm(), no_skip());
    first.step(static_cast<float>(g1), 0.1 * factor, 0.5);
    second.step(static_cast<float>(g2), 0.1 * factor, 0.5);
  }
  EXPECT_NEAR(w[0].item<float>(), first.weight, 1e-5);
  EXPECT_NEAR(w[1].item<float>(), second.weight, 1e-5);
}

TEST(Optimizer, NormIsThatOfAllGradientsAndClippingScalesThem) {
  auto a = torch::zeros({1}).requires_grad_(), b = torch::zeros({2, 1}).requires_grad_();
  Optimizer clipped({group_of(a, 1), group_of(b, 1)}, {.adam_beta1 = 0, .max_grad_norm = 1});
  a.mutable_grad() = torch::full({1}, 3.0F);
  b.mutable_grad() = torch::tensor({0.0F, 4.0F}).view({2, 1});
  const auto norm = clipped.gradient_norm();
  EXPECT_NEAR(norm.item<float>(), 5, 1e-6);
  clipped.step(1, norm, no_skip());
  // With beta1 = 0 the first moment is the gradient as it was used.
  for (const auto& [name, tensor] : clipped.state())
    if (name == "exp_avg.w") {
      EXPECT_NEAR(tensor.norm().item<float>(), tensor.numel() == 1 ? 0.6 : 0.8, 1e-5);
    }
}

TEST(Optimizer, MastersKeepWhatBfloat16CannotHold) {
  auto w = torch::ones({1}, torch::kBFloat16).requires_grad_();
  Optimizer optimizer({group_of(w, 1e-4)}, {});
  for (int step = 0; step < 100; ++step) {  // 1e-4 a step: below bfloat16's resolution at 1
    w.mutable_grad() = torch::ones({1}, torch::kBFloat16);
    optimizer.step(1, optimizer.gradient_norm(), no_skip());
  }
  EXPECT_NEAR(w.item<float>(), 0.99, 0.004);
  for (const auto& [name, tensor] : optimizer.state())
    if (name == "weight.w") {
      EXPECT_NEAR(tensor.item<float>(), 0.99, 1e-5);
    }
  EXPECT_EQ(optimizer.state_bytes(), 4 + 3 * 4);  // step, master and two moments
}

TEST(Optimizer, SkippedStepChangesNothing) {
  for (const char* optim : {"adamw_torch_fused", "adamw_8bit"}) {
    auto w = torch::ones({300}).requires_grad_();
    Optimizer optimizer({group_of(w, 0.1)}, {.optim = optim});
    w.mutable_grad() = torch::full({300}, 0.5F);
    optimizer.step(1, optimizer.gradient_norm(), no_skip());
    std::vector<torch::Tensor> before;
    for (const auto& [name, tensor] : optimizer.state()) before.push_back(tensor.clone());
    w.mutable_grad() = torch::full({300}, NAN);
    optimizer.step(1, optimizer.gradient_norm(), torch::ones({}));
    std::size_t i = 0;
    for (const auto& [name, tensor] : optimizer.state())
      EXPECT_TRUE(torch::equal(tensor, before[i++])) << optim << " " << name;
  }
}

TEST(Optimizer, ParameterWithoutGradientCountsAsZero) {
  auto used = torch::ones({1}).requires_grad_(), unused = torch::ones({1}).requires_grad_();
  Optimizer optimizer({{"part", 0.1, 0, {{"used", used}, {"unused", unused}}}}, {});
  used.mutable_grad() = torch::ones({1});
  const auto norm = optimizer.gradient_norm();
  EXPECT_EQ(norm.item<float>(), 1);
  optimizer.step(1, norm, no_skip());
  EXPECT_EQ(unused.item<float>(), 1);
  EXPECT_NEAR(used.item<float>(), 0.9, 1e-6);
}

TEST(Optimizer, ManySlotsBehaveAsOne) {
  // Parameters of two dtypes in one group end in different slots.
  auto a = torch::ones({4}).requires_grad_();
  auto b = torch::ones({4}, torch::kBFloat16).requires_grad_();
  Optimizer optimizer({{"part", 0.5, 0, {{"a", a}, {"b", b}}}}, {.max_grad_norm = 0});
  a.mutable_grad() = torch::ones({4});
  b.mutable_grad() = torch::ones({4}, torch::kBFloat16);
  optimizer.step(1, optimizer.gradient_norm(), no_skip());
  EXPECT_TRUE(torch::allclose(a, b.to(torch::kFloat32)));
  optimizer.zero_grad();
  EXPECT_FALSE(a.grad().defined());
}

TEST(Optimizer, StateRestoresAnother) {
  const auto run = [](Optimizer& optimizer, torch::Tensor& w, int from, int to) {
    for (int step = from; step < to; ++step) {
      w.mutable_grad() = torch::full({600}, static_cast<float>(std::cos(step))).to(w.dtype());
      optimizer.step(1, optimizer.gradient_norm(), no_skip());
    }
  };
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const char* optim : {"adamw_torch_fused", "adamw_8bit"}) {
      const OptimizerConfig config{.optim = optim};
      auto whole = torch::ones({600}, dtype).requires_grad_(), half = whole.detach().clone();
      half.requires_grad_();
      Optimizer never_stopped({group_of(whole, 0.01)}, config);
      run(never_stopped, whole, 0, 10);
      Optimizer stopped({group_of(half, 0.01)}, config);
      run(stopped, half, 0, 5);
      auto again = torch::zeros({600}, dtype).requires_grad_();
      Optimizer resumed({group_of(again, 0.01)}, config);
      torch::NoGradGuard no_grad;
      const auto from = stopped.state(), to = resumed.state();
      for (std::size_t i = 0; i < from.size(); ++i) to[i].second.copy_(from[i].second);
      resumed.weights_from_masters();
      run(resumed, again, 5, 10);
      EXPECT_TRUE(torch::equal(again, whole)) << optim << " " << dtype;
    }
  }
}

TEST(EightBit, LoopAndTensorOperationsAgree) {
  torch::manual_seed(1);
  const std::int64_t count = 1000;  // not a multiple of the block
  const auto start = torch::randn({count});
  EightBitMoment avg[2], sq[2];
  torch::Tensor weight[2];
  for (int i = 0; i < 2; ++i) {
    weight[i] = start.clone();
    avg[i] = {torch::zeros({count}, torch::kInt8), torch::zeros({moment_blocks(count)})};
    sq[i] = {torch::zeros({count}, torch::kUInt8), torch::zeros({moment_blocks(count)})};
  }
  for (int step = 1; step <= 5; ++step) {
    const auto gradient = torch::randn({count}) * std::pow(10.0, step - 3);
    const AdamStep adam{1e-2, 0.9, 0.999, 1e-8, 0.1, torch::tensor(float(step)), no_skip()};
    adam_8bit_step(adam, gradient, weight[0], avg[0], sq[0]);
    adam_8bit_step_by_tensors(adam, gradient, weight[1], avg[1], sq[1]);
    // Roundings of codes may fall to either side of a tie.
    const auto codes = [](const torch::Tensor& x) { return x.to(torch::kFloat32); };
    EXPECT_LE((codes(avg[0].codes) - codes(avg[1].codes)).abs().max().item<float>(), 1);
    EXPECT_LE((codes(sq[0].codes) - codes(sq[1].codes)).abs().max().item<float>(), 1);
    EXPECT_TRUE(torch::allclose(avg[0].scales, avg[1].scales, 1e-2));
    EXPECT_LE((weight[0] - weight[1]).abs().max().item<float>(), 2e-4 * step);
  }
}

TEST(EightBit, FindsTheMinimumThatFullMomentsFind) {
  // A badly scaled bowl: curvatures from 0.01 to 100 within one block.
  const auto curvature = torch::pow(10, torch::linspace(-2, 2, 256));
  const auto target = torch::linspace(-1, 1, 256);
  for (const char* optim : {"adamw_torch_fused", "adamw_8bit"}) {
    auto w = torch::zeros({256}).requires_grad_();
    Optimizer optimizer({group_of(w, 0.02)}, {.optim = optim, .max_grad_norm = 0});
    for (int step = 0; step < 400; ++step) {
      w.mutable_grad() = (curvature * (w - target)).detach();
      optimizer.step(1 - step / 400.0, optimizer.gradient_norm(), no_skip());
    }
    EXPECT_LE((w - target).abs().max().item<float>(), 0.02) << optim;
  }
}

TEST(EightBit, StateTakesAQuarter) {
  auto w = torch::zeros({256 * 100}).requires_grad_();
  Optimizer full({group_of(w, 1)}, {}), narrow({group_of(w, 1)}, {.optim = "adamw_8bit"});
  EXPECT_EQ(full.state_bytes(), 4 + 2 * 4 * 25600);
  EXPECT_EQ(narrow.state_bytes(), 4 + 2 * (25600 + 4 * 100));
}

TEST(Optimizer, MayOwnNothing) {
  Optimizer optimizer({{"part", 1, 0, {}}}, {});
  EXPECT_EQ(optimizer.gradient_norm().item<float>(), 0);
  optimizer.step(1, torch::ones({}), no_skip());
  EXPECT_EQ(optimizer.state().size(), 1u);
}

TEST(Optimizer, RefusesWhatMakesNoSense) {
  const auto message = [](const OptimizerConfig& config) {
    return error_of(Fault::usage, [&] { check(config); });
  };
  EXPECT_THAT(message({.optim = "adamw_8bits"}), HasSubstr("did you mean \"adamw_8bit\"?"));
  EXPECT_THAT(message({.weight_decay = -1}), HasSubstr("--weight_decay"));
  EXPECT_THAT(message({.adam_beta2 = 1}), HasSubstr("--adam_beta2"));
  EXPECT_THAT(message({.max_grad_norm = -1}), HasSubstr("--max_grad_norm"));
}

}  // namespace
}  // namespace llava::train
