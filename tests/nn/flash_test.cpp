// Attention of training, as nn::attention and nn::full_attention give it in float32 and bfloat16,
// against the same in fp64.
#include "llava/nn/attention.h"
#include "llava/nn/recompute.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using torch::Tensor;

struct Shape {
  std::vector<std::int64_t> starts;
  std::int64_t heads, kv_heads, head_size;
};

/// Attention and the gradients of its inputs.
struct Results {
  Tensor output, q, k, v;
  std::vector<Tensor> all() const { return {output, q, k, v}; }
};

struct Inputs {
  Tensor q, k, v, grad;

  Inputs part(std::int64_t begin, std::int64_t end) const {
    const auto of = [&](const Tensor& x) { return x.slice(0, begin, end).clone(); };
    return {of(q), of(k), of(v), of(grad)};
  }
  Inputs to(torch::ScalarType type) const {
    return {q.to(type), k.to(type), v.to(type), grad.to(type)};
  }
};

Inputs inputs(const Shape& shape, torch::ScalarType type) {
  torch::manual_seed(shape.starts.back());
  const auto T = shape.starts.back(), H = shape.heads, K = shape.kv_heads, E = shape.head_size;
  return {torch::randn({T, H, E}).to(type), torch::randn({T, K, E}).to(type),
          torch::randn({T, K, E}).to(type), torch::randn({T, H, E}).to(type)};
}

template <class Attention>
Results results(const Inputs& in, const Attention& attention) {
  const auto q = in.q.detach().requires_grad_(), k = in.k.detach().requires_grad_(),
             v = in.v.detach().requires_grad_();
  const auto output = attention(q, k, v);
  const auto grads = torch::autograd::grad({output}, {q, k, v}, {in.grad.view(output.sizes())});
  return {output.detach(), grads[0], grads[1], grads[2]};
}

Results causal(const Inputs& in, const std::vector<std::int64_t>& starts) {
  const nn::Rows rows(starts, {}, torch::kCPU);
  return results(in, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return nn::attention(q, k, v, rows, 0);
  });
}

/// The flat batch as N sequences of one length.
Results full(const Inputs& in, std::int64_t N) {
  return results(in, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    const auto apart = [&](const Tensor& x) { return x.unflatten(0, {N, -1}).transpose(1, 2); };
    return nn::full_attention(apart(q), apart(k), apart(v)).transpose(1, 2).flatten(0, 1);
  });
}

/// The largest difference, as a share of the largest number. Sums of one row are of its length.
void expect_near(const Results& found, const Results& wanted, torch::ScalarType type) {
  // bfloat16 rounds inputs of products, weights and outputs: each half a last place, 2e-3.
  const double bound = type == torch::kFloat32 ? 3e-6 : 1e-2;
  for (std::size_t i = 0; i < 4; ++i) {
    const auto a = found.all()[i].to(torch::kFloat64), b = wanted.all()[i];
    EXPECT_LT(((a - b).abs().max() / b.abs().max()).item<double>(), bound) << "tensor " << i;
    EXPECT_EQ(found.all()[i].scalar_type(), type);
  }
}

class Flash : public testing::TestWithParam<Shape> {};

TEST_P(Flash, CausalRowsGiveWhatDoublesGive) {
  const auto& shape = GetParam();
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto in = inputs(shape, type);
    expect_near(causal(in, shape.starts), causal(in.to(torch::kFloat64), shape.starts), type);
  }
}

TEST_P(Flash, FullAttentionGivesWhatDoublesGive) {
  auto shape = GetParam();
  shape.kv_heads = shape.heads;
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto in = inputs(shape, type);
    expect_near(full(in, 1), full(in.to(torch::kFloat64), 1), type);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Flash,
                         testing::Values(Shape{{0, 1, 3, 50}, 4, 4, 64}, Shape{{0, 47}, 4, 2, 64},
                                         Shape{{0, 48, 97}, 6, 1, 32},
                                         Shape{{0, 333, 397, 460}, 4, 2, 64},
                                         Shape{{0, 65, 66, 195}, 2, 2, 80},
                                         Shape{{0, 130}, 3, 3, 6}, Shape{{0, 70, 140}, 2, 1, 256},
                                         Shape{{0, 30}, 2, 2, 258}, Shape{{0, 30}, 2, 2, 7}));

TEST(Flash, SequencesOfOneTensorAreApart) {
  const Shape shape{{0, 150}, 2, 2, 64};
  const auto in = inputs(shape, torch::kFloat32);
  expect_near(full(in, 3), full(in.to(torch::kFloat64), 3), torch::kFloat32);
}

TEST(Flash, ATokenAloneGetsItsValue) {
  const auto in = inputs({{0, 1}, 2, 2, 64}, torch::kFloat32);
  const auto found = causal(in, {0, 1});
  EXPECT_TRUE(torch::equal(found.output, in.v));
  EXPECT_TRUE(torch::equal(found.v, in.grad));
  EXPECT_LT(found.q.abs().max().item<double>(), 1e-5);
}

TEST(Flash, NeighboursAndThreadsChangeNoBit) {
  const Shape shape{{0, 49, 200, 333}, 4, 2, 64};
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto in = inputs(shape, type);
    const auto together = causal(in, shape.starts).all();
    const auto alone = causal(in.part(49, 200), {0, 151}).all();
    for (std::size_t i = 0; i < 4; ++i)
      EXPECT_TRUE(torch::equal(together[i].slice(0, 49, 200), alone[i])) << i;
    const auto threads = at::get_num_threads();
    at::set_num_threads(threads == 1 ? 2 : 1);
    const auto otherwise = causal(in, shape.starts).all();
    at::set_num_threads(threads);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(torch::equal(together[i], otherwise[i])) << i;
  }
}

TEST(Flash, RunAgainItGivesTheSameBits) {
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto in = inputs({{0, 49, 200}, 4, 2, 64}, type);
    const nn::Rows rows({0, 49, 200}, {}, torch::kCPU);
    const auto block = [&](const Tensor& q) {
      return nn::attention(q, in.k, in.v, rows, 0).flatten(1);
    };
    const auto kept = in.q.detach().clone().requires_grad_();
    const auto again = in.q.detach().clone().requires_grad_();
    const auto wanted = block(kept), found = nn::recompute(block, again, /*is_trainable=*/true);
    EXPECT_TRUE(torch::equal(found, wanted));
    wanted.backward(in.grad.flatten(1));
    found.backward(in.grad.flatten(1));
    EXPECT_TRUE(torch::equal(again.grad(), kept.grad()));
  }
}

}  // namespace
}  // namespace llava
