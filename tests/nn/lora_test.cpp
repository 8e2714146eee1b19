#include "llava/nn/lora.h"

#include "support/expect_error.h"

#include <cmath>

namespace llava {
namespace {

struct PairImpl : torch::nn::Module {
  PairImpl() {
    const torch::TensorOptions options(torch::kFloat32);
    torch::manual_seed(1);
    q_proj = register_module("q_proj", nn::Linear(6, 4, true, options));
    o_proj = register_module("o_proj", nn::Linear(4, 6, false, options));
    torch::NoGradGuard no_grad;
    for (auto& weight : parameters()) weight.normal_();
  }
  torch::Tensor forward(const torch::Tensor& x) { return o_proj(q_proj(x)); }
  nn::Linear q_proj{nullptr}, o_proj{nullptr};
};
TORCH_MODULE(Pair);

bool every(const std::string&) { return true; }

TEST(Lora, ScaleIsAlphaOverRankOrItsRoot) {
  EXPECT_DOUBLE_EQ((nn::LoraConfig{.r = 16, .alpha = 32}.scale()), 2);
  EXPECT_DOUBLE_EQ((nn::LoraConfig{.r = 16, .alpha = 32, .rslora = true}.scale()), 8);
}

TEST(Lora, AttachingChangesNothingAtFirst) {
  Pair pair;
  const auto x = torch::randn({3, 6});
  const auto before = pair(x);
  EXPECT_EQ(nn::attach_lora(*pair, every, {.r = 2}, 1), 2);
  EXPECT_TRUE(torch::equal(pair(x), before));
}

// W = 0, so that y = scale * B A x alone: A = (1 2), B = (3), x = (5, 7), scale 2.
TEST(Lora, MatchesHandComputedValue) {
  nn::Linear linear(2, 1, false, torch::TensorOptions(torch::kFloat32));
  nn::attach_lora(linear, {.r = 1, .alpha = 2, .dropout = 0}, 1);
  torch::NoGradGuard no_grad;
  linear->weight.zero_();
  linear->lora_A->weight.copy_(torch::tensor({{1.0, 2.0}}));
  linear->lora_B->weight.copy_(torch::tensor({{3.0}}));
  EXPECT_FLOAT_EQ(linear(torch::tensor({{5.0, 7.0}})).item<float>(), 2 * 3 * (5 + 14));
}

TEST(Lora, MergedEqualsUnmerged) {
  Pair pair;
  nn::attach_lora(*pair, every, {.r = 2, .alpha = 4}, 1);
  torch::NoGradGuard no_grad;
  for (auto& [name, linear] : nn::named_linears(*pair)) linear->lora_B->weight.normal_();
  pair->eval();
  const auto x = torch::randn({3, 6});
  const auto before = pair(x);
  EXPECT_EQ(nn::merge_lora(*pair), 2);
  EXPECT_LE((pair(x) - before).abs().max().item<double>(), 1e-4);  // sums in another order
  EXPECT_EQ(pair->named_parameters().size(), 3u);
  EXPECT_EQ(nn::merge_lora(*pair), 0);
}

TEST(Lora, PairsAreNamedAsPeftNamesThem) {
  Pair pair;
  nn::attach_lora(
      *pair, [](const std::string& name) { return name == "q_proj"; }, {.r = 2}, 1);
  const auto parameters = pair->named_parameters();
  ASSERT_TRUE(parameters.contains("q_proj.lora_A.weight"));
  EXPECT_EQ(parameters["q_proj.lora_A.weight"].sizes(), (std::vector<std::int64_t>{2, 6}));
  EXPECT_EQ(parameters["q_proj.lora_B.weight"].sizes(), (std::vector<std::int64_t>{4, 2}));
  EXPECT_FALSE(parameters.contains("o_proj.lora_A.weight"));
  EXPECT_EQ(nn::named_linears(*pair).size(), 2u);
}

TEST(Lora, InitialValuesComeFromTheSeed) {
  Pair one, two, three;
  nn::attach_lora(*one, every, {.r = 3}, 7);
  nn::attach_lora(*two, every, {.r = 3}, 7);
  nn::attach_lora(*three, every, {.r = 3}, 8);
  const auto a = [](Pair& pair) { return pair->q_proj->lora_A->weight; };
  EXPECT_TRUE(torch::equal(a(one), a(two)));
  EXPECT_FALSE(torch::equal(a(one), a(three)));
  EXPECT_LE(a(one).abs().max().item<double>(), 1 / std::sqrt(6.0));
}

TEST(Lora, DropoutWorksInTrainingAlone) {
  nn::Linear linear(64, 1, false, torch::TensorOptions(torch::kFloat32));
  nn::attach_lora(linear, {.r = 1, .alpha = 1, .dropout = 0.5}, 1);
  torch::NoGradGuard no_grad;
  linear->weight.zero_();
  linear->lora_A->weight.fill_(1);
  linear->lora_B->weight.fill_(1);
  const auto x = torch::ones({1, 64});
  torch::manual_seed(1);
  EXPECT_NE(linear(x).item<float>(), 64);
  linear->eval();
  EXPECT_EQ(linear(x).item<float>(), 64);
}

TEST(Lora, FrozenWeightLearnsThroughThePairAlone) {
  Pair pair;
  nn::attach_lora(*pair, every, {.r = 2, .dropout = 0}, 1);
  pair->q_proj->weight.requires_grad_(false);
  pair(torch::randn({3, 6})).sum().backward();
  EXPECT_FALSE(pair->q_proj->weight.grad().defined());
  EXPECT_TRUE(pair->q_proj->lora_B->weight.grad().defined());
}

TEST(Lora, TwiceIsAnError) {
  Pair pair;
  nn::attach_lora(pair->q_proj, {.r = 2}, 1);
  support::error_of(Fault::usage, [&] { nn::attach_lora(pair->q_proj, {.r = 2}, 1); });
}

}  // namespace
}  // namespace llava
