// A Linear's products and their gradients against fp64, at sizes that fill no block evenly.
#include "llava/nn/gradients.h"
#include "llava/nn/linear.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <tuple>

namespace llava {
namespace {

using torch::Tensor;

/// The largest difference, as a share of the largest number.
double difference(const Tensor& a, const Tensor& b) {
  const auto wide = b.to(torch::kFloat64);
  return ((a.to(torch::kFloat64) - wide).abs().max() / wide.abs().max()).item<double>();
}

struct Products {
  Tensor y, grad_x, grad_weight, grad_bias;
};
Products products_of(const Tensor& x_, const Tensor& weight_, const Tensor& bias_,
                     const Tensor& grad) {
  const auto x = x_.detach().clone().requires_grad_(), weight = weight_.detach().clone();
  weight.requires_grad_();
  const auto bias = bias_.detach().clone().requires_grad_();
  const auto y = nn::linear(x, weight, bias);
  y.backward(grad);
  return {y.detach(), x.grad(), weight.grad(), bias.grad()};
}

class Sizes : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(Sizes, GiveWhatDoublesGive) {
  const auto [T, K, N] = GetParam();
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto x = torch::randn({T, K}).to(type), weight = torch::randn({N, K}).to(type);
    const auto bias = torch::randn({N}).to(type), grad = torch::randn({T, N}).to(type);
    const auto ours = products_of(x, weight, bias, grad);
    const auto wanted = products_of(x.to(torch::kFloat64), weight.to(torch::kFloat64),
                                    bias.to(torch::kFloat64), grad.to(torch::kFloat64));
    const double bound = type == torch::kFloat32 ? 2e-6 : 4e-3;  // half a last place of the largest
    EXPECT_LT(difference(ours.y, wanted.y), bound);
    EXPECT_LT(difference(ours.grad_x, wanted.grad_x), bound);
    EXPECT_LT(difference(ours.grad_weight, wanted.grad_weight), bound);
    EXPECT_EQ(ours.y.scalar_type(), type);
    EXPECT_EQ(ours.grad_weight.sizes(), weight.sizes());
  }
}
INSTANTIATE_TEST_SUITE_P(Products, Sizes,
                         testing::Values(std::tuple{48, 2, 2}, std::tuple{49, 34, 70},
                                         std::tuple{97, 64, 128}, std::tuple{131, 130, 66},
                                         std::tuple{305, 62, 190}, std::tuple{64, 33, 65},
                                         std::tuple{5, 64, 64}));

TEST(Products, ARowDoesNotDependOnItsNeighbours) {
  torch::manual_seed(2);
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const auto x = torch::randn({200, 96}).to(type),
               weight = torch::randn({160, 96}).to(type).requires_grad_();
    const auto all = nn::linear(x, weight);
    EXPECT_TRUE(torch::equal(nn::linear(x.slice(0, 70, 150), weight), all.slice(0, 70, 150)));
    const auto threads = at::get_num_threads();
    at::set_num_threads(1);
    EXPECT_TRUE(torch::equal(nn::linear(x, weight), all));
    at::set_num_threads(threads);
  }
}

TEST(Products, WithoutGradientsOnlyAPartOfTrainingIsRoundedAsTraining) {
  torch::manual_seed(4);
  const auto x = torch::randn({200, 96}), weight = torch::randn({160, 96});
  const auto trained = nn::linear(x, weight);
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(nn::linear(x, weight), torch::linear(x, weight)));
  {
    const nn::PartOfTraining part(false);
    EXPECT_TRUE(torch::equal(nn::linear(x, weight), torch::linear(x, weight)));
  }
  const nn::PartOfTraining part(true);
  EXPECT_TRUE(torch::equal(nn::linear(x, weight), trained));
}

TEST(Products, BatchesOfRowsKeepTheirShape) {
  const auto x = torch::randn({3, 50, 32}), weight = torch::randn({64, 32});
  EXPECT_EQ(nn::linear(x, weight).sizes(), (std::vector<std::int64_t>{3, 50, 64}));
}

TEST(Products, GradientsAddInPlaceWhereAsked) {
  torch::manual_seed(3);
  for (const int T : {80, 7}) {  // our kernels, LibTorch's
    const auto weight = torch::randn({64, 32}).requires_grad_();
    const auto a = torch::randn({T, 32}), b = torch::randn({T, 32});
    nn::linear(a, weight).sum().backward();
    const auto first = weight.grad();
    nn::linear(b, weight).sum().backward();
    const auto wanted = weight.grad().clone();
    weight.mutable_grad() = Tensor();
    const nn::AddsGradientsInPlace adding;
    nn::linear(a, weight).sum().backward();  // nothing there to add to
    const auto* place = weight.grad().data_ptr();
    nn::linear(b, weight).sum().backward();
    EXPECT_EQ(weight.grad().data_ptr(), place);
    EXPECT_LT(difference(weight.grad(), wanted), 1e-6);
  }
}

TEST(Products, WatchedWeightsAreLeftToAutograd) {
  struct Count : torch::autograd::PostAccumulateGradHook {
    explicit Count(int& calls) : calls(calls) {}
    void operator()(const torch::autograd::Variable&) override { ++calls; }
    int& calls;
  };
  int calls = 0;
  const auto weight = torch::randn({64, 32}).requires_grad_();
  torch::autograd::impl::set_post_acc_grad_hooks(weight, std::make_unique<Count>(calls));
  const nn::AddsGradientsInPlace adding;
  for (int i = 0; i < 2; ++i) nn::linear(torch::ones({50, 32}), weight).sum().backward();
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(torch::equal(weight.grad(), torch::full({64, 32}, 100.0)));
}

}  // namespace
}  // namespace llava
