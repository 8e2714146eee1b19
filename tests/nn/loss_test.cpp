#include "llava/nn/loss.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using torch::Tensor;

struct Given {
  Tensor hidden, weight, labels;
  std::vector<std::int64_t> starts{0, 4, 5, 11};
};

Given given(torch::ScalarType type = torch::kFloat64) {
  torch::manual_seed(3);
  Given given;
  given.hidden = torch::randn({11, 6}, torch::kFloat64).to(type).requires_grad_();
  given.weight = torch::randn({9, 6}, torch::kFloat64).to(type).requires_grad_();
  given.labels = torch::tensor({5, -100, 3, 8, 7, 1, -100, 0, 2, -100, 4});
  return given;
}

// Learned: what follows 1, 2 in row 0; nothing in the row of one; 7, 8, 10 of row 2 (its first
// token, 5, has no token before it).
const std::vector<std::int64_t> kPositions{1, 2, 6, 7, 9}, kTokens{3, 8, 0, 2, 4};

/// torch's own cross-entropy over the learned positions.
Tensor plain_sum(const Given& given) {
  const auto logits =
      given.hidden.index_select(0, torch::tensor(kPositions)).matmul(given.weight.t());
  const auto wide =
      given.hidden.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  return torch::nll_loss(torch::log_softmax(logits.to(wide), -1), torch::tensor(kTokens), {},
                         at::Reduction::Sum);
}

TEST(Loss, TargetsAreTheNextTokensOfTheSameRow) {
  const auto inputs = given();
  const auto targets = nn::learned_targets(inputs.labels, inputs.starts);
  EXPECT_TRUE(torch::equal(targets.positions, torch::tensor(kPositions)));
  EXPECT_TRUE(torch::equal(targets.tokens, torch::tensor(kTokens)));
}

// One position, two tokens with logits 0 and log 3: the loss of token 0 is log 4.
TEST(Loss, MatchesHandComputedValue) {
  const auto hidden = torch::ones({2, 1}, torch::kFloat64);
  const auto weight = torch::tensor({0.0, std::log(3.0)}, torch::kFloat64).view({2, 1});
  const auto loss = nn::next_token_loss(hidden, weight, torch::tensor({-100, 0}), {0, 2});
  EXPECT_EQ(loss.count, 1);
  EXPECT_NEAR(loss.sum.item<double>(), std::log(4.0), 1e-12);
}

TEST(Loss, ChunkedEqualsPlainWithGradients) {
  const auto inputs = given();
  const auto wanted =
      torch::autograd::grad({plain_sum(inputs) * 0.37}, {inputs.hidden, inputs.weight});
  for (const std::int64_t chunk : {1, 2, 3, 5, 100, 0}) {
    const auto loss =
        nn::next_token_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.starts, chunk);
    EXPECT_EQ(loss.count, 5);
    EXPECT_NEAR(loss.sum.item<double>(), plain_sum(inputs).item<double>(), 1e-12);
    const auto found = torch::autograd::grad({loss.sum * 0.37}, {inputs.hidden, inputs.weight});
    EXPECT_LE((found[0] - wanted[0]).abs().max().item<double>(), 1e-13) << chunk;
    EXPECT_LE((found[1] - wanted[1]).abs().max().item<double>(), 1e-13) << chunk;
  }
}

// 1/128 is bfloat16's relative step; gradients are sums of a few rounded terms.
TEST(Loss, Bfloat16KeepsSoftmaxAndSumInFloat32) {
  const auto inputs = given(torch::kBFloat16);
  const auto loss =
      nn::next_token_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.starts, 2);
  EXPECT_EQ(loss.sum.scalar_type(), torch::kFloat32);
  EXPECT_NEAR(loss.sum.item<float>(), plain_sum(inputs).item<float>(), 1e-5);
  const auto wanted = torch::autograd::grad({plain_sum(inputs)}, {inputs.hidden, inputs.weight});
  const auto found = torch::autograd::grad({loss.sum}, {inputs.hidden, inputs.weight});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(found[i].scalar_type(), torch::kBFloat16);
    const double size = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i] - wanted[i]).abs().max().item<double>(), size / 64);
  }
}

// Rows enough for our products, a vocabulary that fills no vector, in one chunk and in several.
TEST(Loss, FloatsGiveWhatDoublesGive) {
  torch::manual_seed(4);
  const auto hidden = torch::randn({150, 24}), weight = torch::randn({1002, 24});
  const auto labels = torch::randint(0, 1002, {150}, torch::kInt64);
  const auto results = [&](torch::ScalarType type, std::int64_t chunk) {
    const auto h = hidden.to(type, false, true).requires_grad_();
    const auto w = weight.to(type, false, true).requires_grad_();
    const auto loss = nn::next_token_loss(h, w, labels, {0, 70, 150}, chunk);
    auto all = torch::autograd::grad({loss.sum * 0.5}, {h, w});
    all.insert(all.end(), {loss.sum.detach(), loss.each});
    return all;
  };
  for (const std::int64_t chunk : {0, 60}) {
    const auto found = results(torch::kFloat32, chunk), wanted = results(torch::kFloat64, chunk);
    for (std::size_t i = 0; i < found.size(); ++i)
      EXPECT_LE((found[i] - wanted[i]).abs().max().item<double>(),
                2e-6 * wanted[i].abs().max().item<double>())
          << i;
  }
}

TEST(Loss, NothingLearnedIsZeroWithZeroGradients) {
  auto inputs = given();
  inputs.labels.fill_(-100);
  const auto loss = nn::next_token_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.starts);
  EXPECT_EQ(loss.count, 0);
  EXPECT_EQ(loss.sum.item<double>(), 0);
  loss.sum.backward();
  EXPECT_TRUE(torch::equal(inputs.hidden.grad(), torch::zeros_like(inputs.hidden)));
  EXPECT_TRUE(torch::equal(inputs.weight.grad(), torch::zeros_like(inputs.weight)));
}

TEST(Loss, FrozenHeadGetsNoGradient) {
  auto inputs = given();
  inputs.weight = inputs.weight.detach();
  nn::next_token_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.starts).sum.backward();
  EXPECT_FALSE(inputs.weight.grad().defined());
  EXPECT_TRUE(inputs.hidden.grad().defined());
}

TEST(Loss, UnlearnedPositionsGetZeroGradient) {
  const auto inputs = given();
  nn::next_token_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.starts).sum.backward();
  for (const std::int64_t position : {0, 3, 4, 5, 8, 10})
    EXPECT_EQ(inputs.hidden.grad()[position].abs().sum().item<double>(), 0) << position;
}

}  // namespace
}  // namespace llava
