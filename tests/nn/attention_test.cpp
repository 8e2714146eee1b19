#include "llava/nn/attention.h"

#include "support/expect_error.h"

#include <cmath>

namespace llava {
namespace {

using torch::Tensor;

/// One query at a time: softmax over the keys up to its own position.
/// q [T, H, E], k, v [T_all, K, E]; the first query stands at position `first`.
Tensor slow_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t first) {
  const auto H = q.size(1), groups = H / k.size(1), E = q.size(2);
  auto out = torch::zeros_like(q);
  for (std::int64_t t = 0; t < q.size(0); ++t)
    for (std::int64_t h = 0; h < H; ++h) {
      const auto keys = k.slice(0, 0, first + t + 1).select(1, h / groups);
      const auto values = v.slice(0, 0, first + t + 1).select(1, h / groups);
      const auto scores = keys.mv(q[t][h]) / std::sqrt(static_cast<double>(E));
      out[t][h] = values.t().mv(torch::softmax(scores, 0));
    }
  return out;
}

struct Inputs {
  Tensor q, k, v;
};
Inputs inputs(std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t E,
              torch::ScalarType type = torch::kFloat64) {
  torch::manual_seed(T * 100 + H);
  return {torch::randn({T, H, E}, torch::kFloat64).to(type),
          torch::randn({T, K, E}, torch::kFloat64).to(type),
          torch::randn({T, K, E}, torch::kFloat64).to(type)};
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Attention, EqualsOneQueryAtATime) {
  for (const auto& [H, K] : {std::pair{4, 4}, {4, 2}, {6, 1}}) {
    const auto [q, k, v] = inputs(7, H, K, 6);
    const nn::Rows rows({0, 7}, {}, torch::kCPU);
    EXPECT_LE(distance(nn::attention(q, k, v, rows, 0), slow_attention(q, k, v, 0)), 1e-12);
  }
}

TEST(Attention, RowsAreBlindToEachOther) {
  const auto [q, k, v] = inputs(9, 4, 2, 8);
  const auto together = nn::attention(q, k, v, nn::Rows({0, 2, 3, 9}, {}, torch::kCPU), 0);
  const std::vector<std::int64_t> starts{0, 2, 3, 9};
  for (std::size_t row = 0; row < 3; ++row) {
    const auto part = [&](const Tensor& x) { return x.slice(0, starts[row], starts[row + 1]); };
    EXPECT_LE(distance(part(together), slow_attention(part(q), part(k), part(v), 0)), 1e-12);
  }
}

TEST(Attention, GradientsEqualThoseOfOneQueryAtATime) {
  auto [q, k, v] = inputs(5, 4, 2, 4);
  for (auto* x : {&q, &k, &v}) x->requires_grad_();
  const auto grad = torch::randn({5, 4, 4}, torch::kFloat64);
  const nn::Rows rows({0, 5}, {}, torch::kCPU);
  const auto found = torch::autograd::grad({nn::attention(q, k, v, rows, 0)}, {q, k, v}, {grad});
  const auto wanted = torch::autograd::grad({slow_attention(q, k, v, 0)}, {q, k, v}, {grad});
  for (int i = 0; i < 3; ++i) EXPECT_LE(distance(found[i], wanted[i]), 1e-12);
}

// A row in pieces of 3, 1 and 4 tokens, beside one that starts later: what the cache keeps counts.
TEST(Attention, CachedPiecesEqualTheWholeRow) {
  const torch::NoGradGuard no_grad;
  const auto [q, k, v] = inputs(8, 4, 2, 4);
  const auto [q2, k2, v2] = inputs(5, 4, 2, 4);
  const torch::TensorOptions options(torch::kFloat64);
  nn::KvCache first(1, 2, 4, 8, options), second(1, 2, 4, 16, options);
  std::vector<Tensor> pieces, pieces2;
  const auto part = [](const Tensor& x, std::int64_t begin, std::int64_t end) {
    return x.slice(0, begin, end);
  };
  const auto step = [&](std::int64_t begin, std::int64_t end, std::int64_t begin2,
                        std::int64_t end2) {
    const std::int64_t n = end - begin, n2 = end2 - begin2;
    const auto both = [&](const Tensor& a, const Tensor& b) {
      return torch::cat({part(a, begin, end), part(b, begin2, end2)});
    };
    const nn::Rows rows({0, n, n + n2}, {&first, &second}, torch::kCPU);
    const auto out = nn::attention(both(q, q2), both(k, k2), both(v, v2), rows, 0);
    first.advance(n);
    second.advance(n2);
    pieces.push_back(out.slice(0, 0, n));
    pieces2.push_back(out.slice(0, n));
  };
  step(0, 3, 0, 1);
  step(3, 4, 1, 4);
  step(4, 8, 4, 5);
  EXPECT_LE(distance(torch::cat(pieces), slow_attention(q, k, v, 0)), 1e-12);
  EXPECT_LE(distance(torch::cat(pieces2), slow_attention(q2, k2, v2, 0)), 1e-12);
}

TEST(Attention, NeighboursChangeNoBitOfARow) {
  const auto [q, k, v] = inputs(12, 4, 2, 8, torch::kFloat32);
  const auto part = [](const Tensor& x) { return x.slice(0, 4, 9); };
  const auto together = nn::attention(q, k, v, nn::Rows({0, 4, 9, 12}, {}, torch::kCPU), 0);
  const auto alone = nn::attention(part(q), part(k), part(v), nn::Rows({0, 5}, {}, torch::kCPU), 0);
  EXPECT_TRUE(torch::equal(part(together), alone));
}

TEST(Attention, FullAttentionSeesEveryToken) {
  const auto [q, k, v] = inputs(5, 2, 2, 4);
  const auto heads_first = [](const Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const auto out = nn::full_attention(heads_first(q), heads_first(k), heads_first(v));
  const auto wanted = slow_attention(q.slice(0, 4), k, v, 4);  // the last token sees all
  EXPECT_LE(distance(out[0].transpose(0, 1).slice(0, 4), wanted), 1e-12);
  EXPECT_GT(
      distance(out[0].transpose(0, 1).slice(0, 0, 1), slow_attention(q.slice(0, 0, 1), k, v, 0)),
      1e-3);
}

TEST(KvCache, FullCacheIsAnErrorThatSaysSo) {
  const torch::NoGradGuard no_grad;
  nn::KvCache cache(1, 2, 4, 3, torch::TensorOptions(torch::kFloat32));
  const auto message = support::error_of(Fault::capacity, [&] {
    nn::Rows({0, 4}, {&cache}, torch::kCPU);
  });
  EXPECT_NE(message.find("its cache holds 3"), std::string::npos) << message;
  support::error_of(Fault::capacity, [&] {
    cache.append(0, torch::zeros({2, 4, 4}), torch::zeros({2, 4, 4}));
  });
}

TEST(KvCache, TruncateForgetsTheEnd) {
  const torch::NoGradGuard no_grad;
  nn::KvCache cache(1, 1, 1, 4, torch::TensorOptions(torch::kFloat32));
  const auto numbers = [](const std::vector<float>& values) {
    return torch::tensor(values).view({1, -1, 1});
  };
  cache.append(0, numbers({1, 2, 3}), numbers({1, 2, 3}));
  cache.advance(3);
  cache.truncate(1);
  EXPECT_EQ(cache.length(), 1);
  const auto [keys, values] = cache.append(0, numbers({9}), numbers({8}));
  EXPECT_TRUE(torch::equal(keys, numbers({1, 9})));
  EXPECT_TRUE(torch::equal(values, numbers({1, 8})));
}

TEST(Rows, ImpossibleBatchesAreErrors) {
  support::error_of(Fault::usage, [] { nn::Rows({0}, {}, torch::kCPU); });
  support::error_of(Fault::usage, [] { nn::Rows({0, 3, 3}, {}, torch::kCPU); });
  support::error_of(Fault::usage, [] { nn::Rows({1, 3}, {}, torch::kCPU); });
  nn::KvCache cache(1, 1, 1, 4, torch::TensorOptions(torch::kFloat32));
  support::error_of(Fault::usage, [&] { nn::Rows({0, 1, 2}, {&cache}, torch::kCPU); });
}

}  // namespace
}  // namespace llava
