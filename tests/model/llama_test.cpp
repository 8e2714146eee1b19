#include "llava/model/llama.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

#include <cmath>

namespace llava {
namespace {

using torch::Tensor;

model::LlamaConfig config() { return test::tiny_config().text; }

model::Llama decoder(const model::LlamaConfig& config, torch::ScalarType type = torch::kFloat64) {
  auto whole = test::tiny_config();
  whole.text = config;
  auto llama = test::tiny_model(whole, 3)->llama;
  llama->to(type);
  return llama;
}

Tensor embeds(std::int64_t T) {
  torch::manual_seed(T);
  return torch::randn({T, 16}, torch::kFloat64);
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// A 2-wide MLP whose answer is short enough to work out by hand:
// gate = up = identity, down = [1 1], so y = sum_i silu(x_i) * x_i.
TEST(LlamaMlp, MatchesHandComputedSwiglu) {
  torch::NoGradGuard no_grad;
  model::LlamaConfig two;
  two.hidden_size = two.intermediate_size = 2;
  model::LlamaMlp mlp(two, torch::TensorOptions(torch::kFloat64));
  mlp->gate_proj->weight.copy_(torch::eye(2));
  mlp->up_proj->weight.copy_(torch::eye(2));
  mlp->down_proj->weight.fill_(1.0);
  const auto x = torch::tensor({{1.0, -2.0}}, torch::kFloat64);
  const auto y = mlp(torch::full_like(x, 3), x);
  const double want = 1.0 / (1 + std::exp(-1.0)) + 4.0 / (1 + std::exp(2.0));
  EXPECT_LE(distance(y, torch::full({1, 2}, 3 + want, torch::kFloat64)), 1e-12);
}

TEST(LlamaMlp, GradientsEqualAutogradsOfTheFormula) {
  auto two = config();
  model::LlamaMlp mlp(two, torch::TensorOptions(torch::kFloat64));
  {
    torch::NoGradGuard no_grad;
    for (auto& weight : mlp->parameters()) weight.normal_();
  }
  const auto x = embeds(3).requires_grad_();
  std::vector<Tensor> inputs{x};
  for (const auto& weight : mlp->parameters()) inputs.push_back(weight);
  const auto plain = mlp->down_proj(torch::silu(mlp->gate_proj(x)) * mlp->up_proj(x));
  const auto grad = embeds(3);
  const auto wanted = torch::autograd::grad({plain}, inputs, {grad});
  const auto found = torch::autograd::grad({mlp(torch::zeros_like(x), x)}, inputs, {grad});
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const double size = wanted[i].abs().max().item<double>();
    EXPECT_LE(distance(found[i], wanted[i]), 1e-12 * size);
  }
}

TEST(Llama, NamesAreACheckpoints) {
  auto llama = decoder(config());
  const auto names = llama->named_parameters().keys();
  for (const auto* name : {"embed_tokens.weight", "layers.0.self_attn.q_proj.weight",
                           "layers.1.mlp.gate_proj.weight", "layers.1.input_layernorm.weight",
                           "layers.0.post_attention_layernorm.weight", "norm.weight"})
    EXPECT_THAT(names, testing::Contains(name));
  EXPECT_EQ(names.size(), 2 + 2 * 9u);
}

TEST(Llama, GivesTheWantedTokensAlone) {
  torch::NoGradGuard no_grad;
  auto llama = decoder(config());
  const auto x = embeds(11), wanted = torch::tensor({1, 4, 9, 10});
  const auto all = llama->forward(x, {0, 4, 5, 11});
  EXPECT_LE(distance(llama->forward(x, {0, 4, 5, 11}, {}, wanted), all.index_select(0, wanted)),
            1e-12);
  auto cache = model::make_cache(llama, 12), other = model::make_cache(llama, 12);
  llama->forward(x, {0, 11}, {&cache}, torch::tensor({10}));
  llama->forward(x, {0, 11}, {&other});
  const auto next = embeds(1);  // what the others left in the cache is whole
  EXPECT_LE(
      distance(llama->forward(next, {0, 1}, {&cache}), llama->forward(next, {0, 1}, {&other})),
      1e-12);
}

TEST(Llama, BatchEqualsOneByOne) {
  const torch::NoGradGuard no_grad;
  auto llama = decoder(config());
  const auto x = embeds(11);
  const auto together = llama->forward(x, {0, 4, 5, 11});
  const std::vector<std::int64_t> starts{0, 4, 5, 11};
  for (std::size_t row = 0; row < 3; ++row) {
    const auto n = starts[row + 1] - starts[row];
    const auto alone = llama->forward(x.slice(0, starts[row], starts[row + 1]), {0, n});
    EXPECT_LE(distance(together.slice(0, starts[row], starts[row + 1]), alone), 1e-12);
  }
}

TEST(Llama, CachedDecodeEqualsFullForward) {
  const torch::NoGradGuard no_grad;
  auto grouped = config();
  grouped.rope_scaling = model::RopeScaling{.type = "linear", .factor = 2};
  auto llama = decoder(grouped);
  const auto x = embeds(9), y = embeds(6);
  auto first = model::make_cache(llama, 9), second = model::make_cache(llama, 12);
  std::vector<Tensor> of_x, of_y;
  std::int64_t at_x = 0, at_y = 0;
  for (const auto& [n, m] : {std::pair{5, 2}, {1, 3}, {3, 1}}) {
    const auto both = torch::cat({x.slice(0, at_x, at_x + n), y.slice(0, at_y, at_y + m)});
    const auto out = llama->forward(both, {0, n, n + m}, {&first, &second});
    of_x.push_back(out.slice(0, 0, n));
    of_y.push_back(out.slice(0, n));
    at_x += n;
    at_y += m;
  }
  EXPECT_EQ(first.length(), 9);
  EXPECT_EQ(second.length(), 6);
  EXPECT_LE(distance(torch::cat(of_x), llama->forward(x, {0, 9})), 1e-12);
  EXPECT_LE(distance(torch::cat(of_y), llama->forward(y, {0, 6})), 1e-12);
}

TEST(Llama, TruncatedCacheGoesOnFromThere) {
  const torch::NoGradGuard no_grad;
  auto llama = decoder(config());
  const auto x = embeds(8);
  auto cache = model::make_cache(llama, 16);
  llama->forward(x, {0, 8}, {&cache});
  cache.truncate(3);
  const auto again = llama->forward(x.slice(0, 3), {0, 5}, {&cache});
  EXPECT_LE(distance(again, llama->forward(x, {0, 8}).slice(0, 3)), 1e-12);
}

class LlamaRecompute : public testing::TestWithParam<nn::Recompute> {};

// Sums of gradients come in another order where only a part is made again.
TEST_P(LlamaRecompute, ChangesNoValueAndNoGradient) {
  auto llama = decoder(config());
  const auto x = embeds(7).requires_grad_();
  const auto gradients = [&](nn::Recompute mode) {
    llama->recompute = mode;
    llama->zero_grad();
    x.mutable_grad() = Tensor();
    const auto y = llama->forward(x, {0, 3, 7});
    (y * torch::arange(16)).sum().backward();
    std::vector<Tensor> all{y.detach(), x.grad().clone()};
    for (const auto& item : llama->named_parameters())
      if (item.key() != "embed_tokens.weight") all.push_back(item.value().grad().clone());
    return all;
  };
  const auto wanted = gradients(nn::Recompute::none), found = gradients(GetParam());
  EXPECT_TRUE(torch::equal(found[0], wanted[0]));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double size = wanted[i].abs().max().item<double>();
    EXPECT_LE(distance(found[i], wanted[i]), GetParam() == nn::Recompute::full ? 0 : 1e-13 * size)
        << i;
  }
}

// What a forward makes that backward will make again must be the same bits, though gradients are
// off the first time, when answers are computed by kernels and products of their own.
TEST_P(LlamaRecompute, ComputesInBfloat16AndOnFrozenBitsAsWithout) {
  auto wide = config();
  wide.hidden_size = 64;
  wide.intermediate_size = 96;
  for (const bool packs : {false, true}) {
    torch::manual_seed(11);
    model::Llama llama(wide, torch::TensorOptions(torch::kBFloat16));
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : llama->parameters()) parameter.normal_(0, 0.3);
    }
    if (packs) nn::pack_linears(*llama, nn::Packing::int4);
    const auto x = torch::randn({9, 64}).to(torch::kBFloat16).requires_grad_();
    const auto values = [&](nn::Recompute mode) {
      llama->recompute = mode;
      return llama->forward(x, {0, 4, 9}).detach();
    };
    EXPECT_TRUE(torch::equal(values(GetParam()), values(nn::Recompute::none))) << packs;
  }
}
INSTANTIATE_TEST_SUITE_P(Modes, LlamaRecompute,
                         testing::Values(nn::Recompute::selective, nn::Recompute::full));

TEST(Llama, FrozenDecoderStillPassesGradientsDown) {
  auto llama = decoder(config());
  for (auto& parameter : llama->parameters()) parameter.requires_grad_(false);
  for (const auto mode : {nn::Recompute::none, nn::Recompute::selective, nn::Recompute::full}) {
    llama->recompute = mode;
    const auto x = embeds(4).requires_grad_();
    llama->forward(x, {0, 4}).sum().backward();
    EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
  }
}

TEST(Llama, CallbacksRunAroundEveryLayer) {
  auto llama = decoder(config());
  std::string calls;
  llama->before_layer = [&](std::int64_t i, const Tensor&) { calls += "b" + std::to_string(i); };
  llama->after_layer = [&](std::int64_t i, const Tensor& x) {
    calls += "a" + std::to_string(i);
    EXPECT_EQ(x.size(0), 4);
  };
  llama->forward(embeds(4), {0, 4});
  EXPECT_EQ(calls, "b0a0b1a1");
}

TEST(Llama, SlidingWindowIsRefusedWhereItWouldMatter) {
  const torch::NoGradGuard no_grad;
  auto windowed = config();
  windowed.sliding_window = 5;
  auto llama = decoder(windowed);
  EXPECT_LE(
      distance(llama->forward(embeds(5), {0, 5}), decoder(config())->forward(embeds(5), {0, 5})),
      1e-12);
  const auto message = support::error_of(Fault::capacity, [&] {
    llama->forward(embeds(6), {0, 6});
  });
  EXPECT_THAT(message, testing::HasSubstr("sliding window is 5"));
}

TEST(Llama, MisusesAreErrors) {
  auto llama = decoder(config());
  support::error_of(Fault::usage, [&] { llama->forward(embeds(4), {0, 5}); });
  auto cache = model::make_cache(llama, 4);
  const auto message = support::error_of(Fault::usage, [&] {
    llama->forward(embeds(4), {0, 4}, {&cache});
  });
  EXPECT_THAT(message, testing::HasSubstr("turn gradients off"));
  const torch::NoGradGuard no_grad;
  support::error_of(Fault::capacity, [&] { llama->forward(embeds(5), {0, 5}, {&cache}); });
  EXPECT_EQ(cache.length(), 0);
}

}  // namespace
}  // namespace llava
