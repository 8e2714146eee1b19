#include "llava/nn/recompute.h"

#include "llava/nn/linear.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using torch::Tensor;

struct Block {
  explicit Block(double dropout = 0) : dropout(dropout) {
    torch::manual_seed(5);
    for (auto* weight : {&first, &second})
      *weight = torch::randn({4, 4}, torch::kFloat64).requires_grad_();
  }
  Tensor operator()(const Tensor& x) {
    ++runs;
    return torch::dropout(torch::tanh(x.matmul(first)), dropout, true).matmul(second);
  }

  double dropout;
  int runs = 0;
  Tensor first, second;
};

Tensor input() {
  torch::manual_seed(6);
  return torch::randn({3, 4}, torch::kFloat64);
}

TEST(Recompute, ValuesAndGradientsAreTheSameBitForBit) {
  Block block;
  const auto x = input().requires_grad_();
  const auto y = block(x);
  const auto wanted = torch::autograd::grad({y.square().sum()}, {x, block.first, block.second});
  const auto z = nn::recompute([&](const Tensor& in) { return block(in); }, x, true);
  EXPECT_TRUE(torch::equal(y, z));
  z.square().sum().backward();
  EXPECT_TRUE(torch::equal(x.grad(), wanted[0]));
  EXPECT_TRUE(torch::equal(block.first.grad(), wanted[1]));
  EXPECT_TRUE(torch::equal(block.second.grad(), wanted[2]));
  EXPECT_EQ(block.runs, 3);
}

TEST(Recompute, TrainsABlockWhoseInputNeedsNoGradient) {
  Block block;
  const auto y = nn::recompute([&](const Tensor& in) { return block(in); }, input(), true);
  y.sum().backward();
  EXPECT_TRUE(block.first.grad().defined());
}

TEST(Recompute, DropoutDrawsTheSameNumbersAndLeavesTheGeneratorAlone) {
  Block block(0.5);
  const auto x = input().requires_grad_();
  torch::manual_seed(9);
  const auto wanted = torch::autograd::grad({block(x).sum()}, {x})[0];
  const auto next = torch::rand({1});
  torch::manual_seed(9);
  const auto y = nn::recompute([&](const Tensor& in) { return block(in); }, x, true);
  torch::rand({17});  // later draws must not matter
  y.sum().backward();
  EXPECT_TRUE(torch::equal(x.grad(), wanted));
  torch::manual_seed(9);
  nn::recompute([&](const Tensor& in) { return block(in); }, x, true).sum().backward();
  EXPECT_TRUE(torch::equal(torch::rand({1}), next));
}

TEST(Recompute, RunsPlainlyWhereNothingIsRecorded) {
  Block block;
  block.first.requires_grad_(false);
  block.second.requires_grad_(false);
  const auto y = nn::recompute([&](const Tensor& in) { return block(in); }, input(), false);
  EXPECT_FALSE(y.requires_grad());
  const torch::NoGradGuard no_grad;
  nn::recompute([&](const Tensor& in) { return block(in); }, input(), true);
  EXPECT_EQ(block.runs, 2);
}

TEST(Recompute, NestedBlocksWork) {
  Block inner, outer;
  const auto x = input().requires_grad_();
  const auto wanted = torch::autograd::grad({outer(inner(x)).sum()}, {x, inner.first})[1];
  const auto y = nn::recompute(
      [&](const Tensor& in) {
        return outer(nn::recompute([&](const Tensor& deep) { return inner(deep); }, in, true));
      },
      x, true);
  y.sum().backward();
  EXPECT_TRUE(torch::equal(inner.first.grad(), wanted));
}

TEST(IsTrainable, SaysWhetherAnyParameterLearns) {
  nn::Linear linear(2, 2, true, torch::TensorOptions(torch::kFloat32));
  EXPECT_TRUE(nn::is_trainable(*linear));
  linear->weight.requires_grad_(false);
  EXPECT_TRUE(nn::is_trainable(*linear));
  linear->bias.requires_grad_(false);
  EXPECT_FALSE(nn::is_trainable(*linear));
}

}  // namespace
}  // namespace llava
