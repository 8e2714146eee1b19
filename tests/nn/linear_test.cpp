#include "llava/nn/linear.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(Linear, MatchesHandComputedProduct) {
  torch::NoGradGuard no_grad;
  nn::Linear linear(2, 2, true, torch::TensorOptions(torch::kFloat64));
  linear->weight.copy_(torch::tensor({{1.0, 2.0}, {3.0, 4.0}}));
  linear->bias.copy_(torch::tensor({10.0, 20.0}));
  const auto y = linear(torch::tensor({{1.0, -1.0}}, torch::kFloat64));
  EXPECT_TRUE(torch::equal(y, torch::tensor({{9.0, 19.0}}, torch::kFloat64)));
}

TEST(Linear, HasTheNamesOfACheckpoint) {
  const torch::TensorOptions options(torch::kFloat32);
  const nn::Linear with(3, 2, true, options), without(3, 2, false, options);
  EXPECT_EQ(with->named_parameters().keys(), (std::vector<std::string>{"weight", "bias"}));
  EXPECT_EQ(without->named_parameters().keys(), (std::vector<std::string>{"weight"}));
  EXPECT_EQ(with->in(), 3);
  EXPECT_EQ(with->out(), 2);
}

TEST(Linear, TakesDtypeAndDevice) {
  const auto meta = torch::TensorOptions(torch::kBFloat16).device(torch::kMeta);
  const nn::Linear linear(1 << 20, 1 << 20, false, meta);  // 2 TiB if it were real
  EXPECT_TRUE(linear->weight.is_meta());
  EXPECT_EQ(linear->weight.scalar_type(), torch::kBFloat16);
}

TEST(Embedding, PicksRows) {
  torch::NoGradGuard no_grad;
  nn::Embedding table(4, 2, torch::TensorOptions(torch::kFloat32));
  table->weight.copy_(torch::arange(8).view({4, 2}));
  const auto rows = table(torch::tensor({3, 0, 3}));
  EXPECT_TRUE(
      torch::equal(rows, torch::tensor({{6.0, 7.0}, {0.0, 1.0}, {6.0, 7.0}}, torch::kFloat32)));
}

}  // namespace
}  // namespace llava
