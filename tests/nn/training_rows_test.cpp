// Row functions of training in float32 and bfloat16 against fp64, with widths that fill no vector.
#include "llava/nn/activation.h"
#include "llava/nn/norm.h"
#include "llava/nn/rotary.h"

#include <gtest/gtest.h>

#include <functional>
#include <tuple>

namespace llava {
namespace {

using torch::Tensor;
using Inputs = std::vector<Tensor>;
using Operation = std::function<Tensor(const Inputs&)>;

/// The result, and the gradients of the inputs.
std::vector<Tensor> results(const Operation& operation, const Inputs& inputs, const Tensor& grad) {
  Inputs leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const auto y = operation(leaves);
  auto all = torch::autograd::grad({y}, leaves, {grad});
  all.insert(all.begin(), y.detach());
  return all;
}

/// The same in fp64, as a share of the largest number; bfloat16 rounds results and what an
/// operation of its own would round.
void expect_near_doubles(const Operation& operation, const Inputs& inputs, const Tensor& grad) {
  const auto type = grad.scalar_type();
  Inputs wide;
  for (const auto& input : inputs) wide.push_back(input.to(torch::kFloat64));
  const auto found = results(operation, inputs, grad);
  const auto wanted = results(operation, wide, grad.to(torch::kFloat64));
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto error = (found[i].to(torch::kFloat64) - wanted[i]).abs().max();
    EXPECT_LT((error / wanted[i].abs().max()).item<double>(), type == torch::kFloat32 ? 1e-6 : 1e-2)
        << "tensor " << i;
    EXPECT_EQ(found[i].scalar_type(), type);
  }
}

Tensor random(std::vector<std::int64_t> shape, torch::ScalarType type) {
  return torch::randn(shape).to(type);
}

class TrainingRows : public testing::TestWithParam<std::tuple<torch::ScalarType, std::int64_t>> {
 protected:
  TrainingRows() { torch::manual_seed(std::get<1>(GetParam())); }
  const torch::ScalarType type = std::get<0>(GetParam());
  const std::int64_t width = std::get<1>(GetParam());
};

TEST_P(TrainingRows, RmsNormGivesWhatDoublesGive) {
  const auto norm = [](const Inputs& in) { return nn::rms_norm(in[0], in[1], 1e-5); };
  for (const std::int64_t rows : {1, 64, 131})
    expect_near_doubles(norm, {random({rows, width}, type), random({width}, type)},
                        random({rows, width}, type));
}

TEST_P(TrainingRows, SwigluGivesWhatDoublesGive) {
  const auto swiglu = [](const Inputs& in) { return nn::swiglu(in[0], in[1]); };
  expect_near_doubles(swiglu, {3 * random({9, width}, type), random({9, width}, type)},
                      random({9, width}, type));
}

TEST_P(TrainingRows, RotationGivesWhatDoublesGive) {
  const auto angles = torch::randn({9, width});
  const auto cos = angles.cos().to(type), sin = angles.sin().to(type);
  const auto rotate = [&](const Inputs& in) {
    return nn::rotate(in[0], cos.to(in[0].scalar_type()), sin.to(in[0].scalar_type()));
  };
  expect_near_doubles(rotate, {random({9, 3, 2 * width}, type)}, random({9, 3, 2 * width}, type));
}

INSTANTIATE_TEST_SUITE_P(Widths, TrainingRows,
                         testing::Combine(testing::Values(torch::kFloat32, torch::kBFloat16),
                                          testing::Values(5, 16, 47, 512)));

TEST(TrainingRows, ThreadsAndNeighboursChangeNoBit) {
  const auto x = random({700, 96}, torch::kFloat32), weight = random({96}, torch::kFloat32);
  const auto grad = random({700, 96}, torch::kFloat32);
  const auto norm = [](const Inputs& in) { return nn::rms_norm(in[0], in[1], 1e-5); };
  const auto all = results(norm, {x, weight}, grad);
  const auto part = [](const Tensor& y) { return y.slice(0, 100, 300); };
  const auto some = results(norm, {part(x), weight}, part(grad));
  EXPECT_TRUE(torch::equal(part(all[0]), some[0]));
  EXPECT_TRUE(torch::equal(part(all[1]), some[1]));
  const auto threads = at::get_num_threads();
  at::set_num_threads(threads == 1 ? 2 : 1);
  const auto otherwise = results(norm, {x, weight}, grad);
  at::set_num_threads(threads);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(torch::equal(all[i], otherwise[i]));
}

}  // namespace
}  // namespace llava
