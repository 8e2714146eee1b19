#include "llava/nn/rotary.h"

#include <gtest/gtest.h>

#include <cmath>

namespace llava {
namespace {

using torch::Tensor;

// A head of four numbers, theta 100: the pairs (x0, x2), (x1, x3) turn by p and p / 10.
TEST(Rotary, TurnsPairsByHandComputedAngles) {
  const nn::RotaryConfig config{.head_dim = 4, .theta = 100};
  nn::Rotary rotary(config);
  const auto [cos, sin] = rotary.rows({0, 3}, {0}, torch::TensorOptions(torch::kFloat64));
  const auto x = torch::tensor({1.0, 2.0, 3.0, 4.0}, torch::kFloat64).view({1, 1, 4});
  const auto y = nn::rotate(x.expand({3, 1, 4}), cos, sin);
  for (int p = 0; p < 3; ++p) {
    const double a = p, b = p / 10.0;
    const double want[] = {std::cos(a) - 3 * std::sin(a), 2 * std::cos(b) - 4 * std::sin(b),
                           3 * std::cos(a) + std::sin(a), 4 * std::cos(b) + 2 * std::sin(b)};
    for (int i = 0; i < 4; ++i)
      EXPECT_NEAR(y[p][0][i].item<double>(), want[i], 1e-6);  // fp32 table
  }
}

TEST(Rotary, PositionsRestartInEveryRowAndGoOnAfterACache) {
  nn::Rotary rotary({.head_dim = 6});
  const torch::TensorOptions options(torch::kFloat32);
  const auto [cos, sin] = rotary.rows({0, 2, 5}, {0, 300}, options);
  const auto alone = rotary.rows({0, 303}, {0}, options);
  EXPECT_TRUE(torch::equal(cos.slice(0, 0, 2), alone.first.slice(0, 0, 2)));
  EXPECT_TRUE(torch::equal(cos.slice(0, 2), alone.first.slice(0, 300)));
  EXPECT_TRUE(torch::equal(sin.slice(0, 2), alone.second.slice(0, 300)));
}

TEST(Rotary, LinearScalingSlowsAllPairs) {
  const nn::RotaryConfig plain{.head_dim = 8};
  auto scaled = plain;
  scaled.scaling = nn::RotaryConfig::Scaling::linear;
  scaled.factor = 2.5;
  EXPECT_TRUE(
      torch::equal(nn::inverse_frequencies(scaled, 1), nn::inverse_frequencies(plain, 1) / 2.5));
}

TEST(Rotary, DynamicScalingBeginsBehindItsLength) {
  nn::RotaryConfig config{.head_dim = 8, .max_positions = 16};
  const auto plain = nn::inverse_frequencies(config, 1);
  config.scaling = nn::RotaryConfig::Scaling::dynamic;
  config.factor = 2;
  EXPECT_TRUE(torch::equal(nn::inverse_frequencies(config, 16), plain));
  // Base 10000 * (2 * 32/16 - 1)^(8/6) at length 32.
  const double base = 10000 * std::pow(3.0, 8.0 / 6);
  const auto longer = nn::inverse_frequencies(config, 32);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(longer[i].item<double>(), std::pow(base, -2.0 * i / 8), 1e-6);
}

// Rows of one batch are scaled by their own lengths, not by the longest's.
TEST(Rotary, DynamicScalingIsARowsOwn) {
  nn::Rotary rotary({.head_dim = 8,
                     .scaling = nn::RotaryConfig::Scaling::dynamic,
                     .factor = 2,
                     .max_positions = 4});
  const torch::TensorOptions options(torch::kFloat32);
  const auto both = rotary.rows({0, 3, 11}, {0, 0}, options).first;
  EXPECT_TRUE(torch::equal(both.slice(0, 0, 3), rotary.rows({0, 3}, {0}, options).first));
  EXPECT_TRUE(torch::equal(both.slice(0, 3), rotary.rows({0, 8}, {0}, options).first));
}

// wavelength > old / low: slowed by the factor; < old / high: as it is.
TEST(Rotary, Llama3ScalingLeavesFastPairsAlone) {
  nn::RotaryConfig config{.head_dim = 128, .theta = 500000};
  const auto plain = nn::inverse_frequencies(config, 1);
  config.scaling = nn::RotaryConfig::Scaling::llama3;
  config.factor = 8;
  const auto scaled = nn::inverse_frequencies(config, 1);
  EXPECT_EQ(scaled[0].item<float>(), plain[0].item<float>());
  EXPECT_FLOAT_EQ(scaled[63].item<float>(), plain[63].item<float>() / 8);
  const auto ratio = plain / scaled;
  EXPECT_TRUE((ratio.slice(0, 1) >= ratio.slice(0, 0, 63) - 1e-5).all().item<bool>());
}

TEST(Rotary, BackwardTurnsBack) {
  torch::manual_seed(1);
  nn::Rotary rotary({.head_dim = 6});
  const auto [cos, sin] = rotary.rows({0, 4}, {0}, torch::TensorOptions(torch::kFloat64));
  const auto x = torch::randn({4, 2, 6}, torch::kFloat64).requires_grad_();
  const auto grad = torch::randn({4, 2, 6}, torch::kFloat64);
  const auto found = torch::autograd::grad({nn::rotate(x, cos, sin)}, {x}, {grad})[0];
  const auto c = torch::cat({cos, cos}, -1).unsqueeze(1),
             s = torch::cat({sin, sin}, -1).unsqueeze(1);
  const auto halves = x.chunk(2, -1);
  const auto plain = x * c + torch::cat({-halves[1], halves[0]}, -1) * s;
  const auto wanted = torch::autograd::grad({plain}, {x}, {grad})[0];
  EXPECT_LE((found - wanted).abs().max().item<double>(), 1e-12);
}

TEST(Rotary, RoundsEveryStepInBfloat16) {
  torch::manual_seed(1);
  nn::Rotary rotary({.head_dim = 8});
  const auto [cos, sin] = rotary.rows({0, 5}, {0}, torch::TensorOptions(torch::kBFloat16));
  const auto x = torch::randn({5, 3, 8}).to(torch::kBFloat16);
  const auto c = torch::cat({cos, cos}, -1).unsqueeze(1),
             s = torch::cat({sin, sin}, -1).unsqueeze(1);
  const auto halves = x.chunk(2, -1);
  EXPECT_TRUE(
      torch::equal(nn::rotate(x, cos, sin), x * c + torch::cat({-halves[1], halves[0]}, -1) * s));
}

}  // namespace
}  // namespace llava
