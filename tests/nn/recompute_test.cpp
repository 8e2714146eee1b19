#include "llava/nn/recompute.h"

#include "llava/nn/lora.h"

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

struct Products {
  Products() {
    torch::manual_seed(8);
    const torch::TensorOptions options(torch::kFloat64);
    one = nn::Linear(4, 3, true, options);
    two = nn::Linear(4, 5, false, options);
    torch::NoGradGuard no_grad;
    for (auto& linear : {one, two})
      for (auto& weight : linear->parameters()) weight.normal_();
  }

  /// Sum of both products of tanh(x), and how often tanh ran until backward was over.
  std::vector<Tensor> gradients(const Tensor& x, bool is_kept) {
    runs = 0;
    const auto make = [this](const std::vector<Tensor>& in) {
      ++runs;
      return torch::tanh(in[0]);
    };
    const auto results = nn::linears({one, two}, {make, {x}, is_kept});
    one->zero_grad();
    two->zero_grad();
    if (x.requires_grad()) x.mutable_grad() = Tensor();
    (results[0].square().sum() + results[1].sin().sum()).backward();
    std::vector<Tensor> all{results[0].detach(), results[1].detach(), x.grad()};
    for (auto& linear : {one, two})
      for (auto& weight : linear->parameters()) all.push_back(weight.grad());
    return all;
  }

  nn::Linear one{nullptr}, two{nullptr};
  int runs = 0;
};

void expect_near(const std::vector<Tensor>& found, const std::vector<Tensor>& wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(found[i].defined(), wanted[i].defined()) << i;
    if (found[i].defined()) {
      EXPECT_LE((found[i] - wanted[i]).abs().max().item<double>(), 1e-12) << i;
    }
  }
}

TEST(Linears, RemadeInputHasTheSameGradients) {
  Products products;
  const auto x = input().requires_grad_();
  const auto wanted = products.gradients(x, true);
  EXPECT_EQ(products.runs, 1);
  expect_near(products.gradients(x, false), wanted);
  EXPECT_EQ(products.runs, 2);
}

TEST(Linears, FrozenWeightsAndInputsGetNone) {
  Products products;
  products.two->weight.requires_grad_(false);
  const auto x = input();
  const auto wanted = products.gradients(x, true);
  const auto found = products.gradients(x, false);
  expect_near(found, wanted);
  EXPECT_FALSE(found[2].defined());
  EXPECT_FALSE(found.back().defined());
}

TEST(Linears, LoraLearnsThroughARemadeInput) {
  Products products;
  nn::attach_lora(products.two, {.r = 2, .alpha = 4, .dropout = 0}, 1);
  products.two->weight.requires_grad_(false);
  {
    torch::NoGradGuard no_grad;
    products.two->lora_B->weight.normal_();
  }
  const auto x = input().requires_grad_();
  const auto wanted = products.gradients(x, true);
  expect_near(products.gradients(x, false), wanted);
  EXPECT_EQ(products.runs, 2);
}

TEST(Linears, DropoutKeepsTheInput) {
  Products products;
  nn::attach_lora(products.two, {.r = 2, .alpha = 4, .dropout = 0.5}, 1);
  products.gradients(input().requires_grad_(), false);
  EXPECT_EQ(products.runs, 1);
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
