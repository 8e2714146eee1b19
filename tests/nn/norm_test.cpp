#include "llava/nn/norm.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using torch::Tensor;

/// transformers' LlamaRMSNorm, line by line.
Tensor slow_rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  auto y = x.to(torch::kFloat32);
  y = y * torch::rsqrt(y.pow(2).mean(-1, true) + eps);
  return weight * y.to(x.scalar_type());
}

// x = (3, 4): mean square 12.5, so that y = x / sqrt(12.5).
TEST(RmsNorm, MatchesHandComputedRow) {
  const auto x = torch::tensor({{3.0, 4.0}}, torch::kFloat64);
  const auto y = nn::rms_norm(x, torch::tensor({1.0, 2.0}, torch::kFloat64), 0.0);
  EXPECT_NEAR(y[0][0].item<double>(), 3 / std::sqrt(12.5), 1e-12);
  EXPECT_NEAR(y[0][1].item<double>(), 8 / std::sqrt(12.5), 1e-12);
}

TEST(RmsNorm, RoundsWhereTransformersRounds) {
  const torch::NoGradGuard no_grad;  // training may add up in another order
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
    const auto x = torch::randn({7, 24}).to(type), weight = torch::randn({24}).to(type);
    EXPECT_TRUE(torch::equal(nn::rms_norm(x, weight, 1e-6), slow_rms_norm(x, weight, 1e-6)))
        << type;
  }
}

TEST(RmsNorm, GradientsEqualAutogradsOfTheFormula) {
  torch::manual_seed(2);
  const auto make = [](std::vector<std::int64_t> shape) {
    return torch::randn(shape, torch::kFloat64).requires_grad_();
  };
  const auto x = make({5, 8}), weight = make({8}), grad = torch::randn({5, 8}, torch::kFloat64);
  const auto gradients = [&](const Tensor& y) {
    return torch::autograd::grad({y}, {x, weight}, {grad});
  };
  const auto root = torch::rsqrt(x.pow(2).mean(-1, true) + 1e-3);
  const auto wanted = gradients(weight * (x * root));
  const auto found = gradients(nn::rms_norm(x, weight, 1e-3));
  EXPECT_LE((found[0] - wanted[0]).abs().max().item<double>(), 1e-12);
  EXPECT_LE((found[1] - wanted[1]).abs().max().item<double>(), 1e-12);
}

TEST(RmsNorm, FrozenWeightGetsNoGradient) {
  const auto x = torch::ones({2, 4}).requires_grad_();
  const auto weight = torch::ones({4});
  nn::rms_norm(x, weight, 1e-6).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
}

TEST(LayerNorm, MatchesHandComputedRow) {
  nn::LayerNorm norm(2, 0.0, torch::TensorOptions(torch::kFloat64));
  torch::NoGradGuard no_grad;
  norm->weight.fill_(2);
  norm->bias.fill_(1);
  const auto y = norm(torch::tensor({{1.0, 3.0}}, torch::kFloat64));  // (-1, 1) normalised
  EXPECT_NEAR(y[0][0].item<double>(), -1, 1e-12);
  EXPECT_NEAR(y[0][1].item<double>(), 3, 1e-12);
}

}  // namespace
}  // namespace llava
