// The GPU's step, here on a CPU, where it is not recorded but done again.
#include "llava/model/device_step.h"

#include "llava/nn/device.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

#include <gtest/gtest.h>

#include <limits>

namespace llava::model {
namespace {

using torch::Tensor;

/// A row's cache as on a GPU: its room holds zeros.
nn::KvCache cleared_cache(const Llava& model, std::int64_t capacity) {
  auto cache = make_cache(model->llama, capacity);
  for (std::int64_t layer = 0; layer < model->llama->config.num_hidden_layers; ++layer) {
    Tensor(cache.keys(layer)).zero_();
    Tensor(cache.values(layer)).zero_();
  }
  return cache;
}

class DeviceStepTest : public testing::Test {
 protected:
  /// A cache with a prompt of `length` tokens.
  nn::KvCache prompted(std::int64_t length, std::int64_t capacity) {
    auto cache = cleared_cache(model, capacity);
    torch::manual_seed(length);
    model->llama->forward(torch::randn({length, 16}).to(device), {0, length}, {&cache});
    return cache;
  }
  Tensor logits_of(std::int64_t id, nn::KvCache& cache) {
    const auto embeds = model->llama->embed_tokens(torch::tensor({id}).to(device));
    return model->logits(model->llama->forward(embeds, {0, 1}, {&cache}))[0].cpu();
  }

  torch::NoGradGuard no_grad;
  torch::Device device = torch::kCPU;
  Llava model = test::tiny_model();
};

TEST_F(DeviceStepTest, GivesTheLogitsOfTheDecoder) {
  DeviceStep step(model);
  auto a = prompted(3, 20), b = prompted(9, 400), same_a = prompted(3, 20),
       same_b = prompted(9, 400);
  for (std::int64_t round = 0; round < 10; ++round) {
    const auto found = torch::empty({2, 64});
    auto* to = found.data_ptr<float>();
    const nn::NextToken tokens[] = {{3 + round, &a, to}, {50 - round, &b, to + 64}};
    step.forward(tokens);
    EXPECT_LT((found[0] - logits_of(3 + round, same_a)).abs().max().item<float>(), 1e-4);
    EXPECT_LT((found[1] - logits_of(50 - round, same_b)).abs().max().item<float>(), 1e-4);
    EXPECT_EQ(a.length(), same_a.length());
    EXPECT_EQ(b.length(), same_b.length());
  }
}

TEST_F(DeviceStepTest, ChoosesWhatTheDecoderFindsLikeliest) {
  DeviceStep step(model);
  for (const std::int64_t length : {4, 252}) {  // 252: what is looked at grows on the way
    auto cache = prompted(length, 300), other = prompted(length, 300);
    std::vector<std::int64_t> found, expected;
    step.likeliest({7, &cache, nullptr}, [&](std::int64_t id) {
      found.push_back(id);
      return found.size() < 12;
    });
    for (std::int64_t id = 7; expected.size() < 12; expected.push_back(id))
      id = logits_of(id, other).argmax().item<std::int64_t>();
    EXPECT_EQ(found, expected);
    EXPECT_EQ(cache.length(), other.length());  // `first` and all but the last
    // What was begun behind the end is gone: the row goes on as the other does.
    const auto logits = torch::empty({64});
    const nn::NextToken next{found.back(), &cache, logits.data_ptr<float>()};
    step.forward({&next, 1});
    EXPECT_LT((logits - logits_of(found.back(), other)).abs().max().item<float>(), 1e-4);
  }
}

TEST_F(DeviceStepTest, StopsWhereTheCacheIsFull) {
  DeviceStep step(model);
  auto cache = prompted(4, 8);
  std::size_t taken = 0;
  step.likeliest({7, &cache, nullptr}, [&](std::int64_t) { return ++taken > 0; });
  EXPECT_EQ(taken, 4);
  EXPECT_EQ(cache.length(), 8);
  support::error_of(Fault::capacity, [&] {
    step.likeliest({7, &cache, nullptr}, [](std::int64_t) { return true; });
  });
}

TEST_F(DeviceStepTest, SaysWhenLogitsAreNoNumbers) {
  model->lm_head->weight[5][0] = std::numeric_limits<float>::quiet_NaN();
  DeviceStep step(model);
  auto cache = prompted(4, 20);
  support::error_of(Fault::non_finite, [&] {
    step.likeliest({7, &cache, nullptr}, [](std::int64_t) { return true; });
  });
}

TEST_F(DeviceStepTest, IsRecordedOnAGpu) {
  if (nn::cuda_report(/*open_anyway=*/false).devices.empty()) GTEST_SKIP() << "no GPU here";
  device = nn::choose_device("cuda");
  model->to(device);
  const auto step = make_device_step(model);
  ASSERT_TRUE(step);
  auto cache = prompted(250, 300), other = prompted(250, 300);
  for (std::int64_t id = 3; id < 13; ++id) {
    const auto found = torch::empty({64});
    const nn::NextToken token{id, &cache, found.data_ptr<float>()};
    step->forward({&token, 1});
    EXPECT_LT((found - logits_of(id, other)).abs().max().item<float>(), 1e-3) << id;
  }
  EXPECT_TRUE(step->is_recorded());
  std::vector<std::int64_t> found, expected;
  step->likeliest({7, &cache, nullptr}, [&](std::int64_t id) {
    found.push_back(id);
    return found.size() < 12;
  });
  for (std::int64_t id = 7; expected.size() < 12; expected.push_back(id))
    id = logits_of(id, other).argmax().item<std::int64_t>();
  EXPECT_EQ(found, expected);
  EXPECT_TRUE(step->is_recorded());
}

TEST_F(DeviceStepTest, IsForGpusAlone) {
  EXPECT_FALSE(make_device_step(model));
  auto config = test::tiny_config();
  config.text.sliding_window = 16;
  EXPECT_FALSE(DeviceStep::is_possible(test::tiny_model(config)));
  config = test::tiny_config();
  config.text.rope_scaling = RopeScaling{.type = "dynamic", .factor = 2};
  EXPECT_FALSE(DeviceStep::is_possible(test::tiny_model(config)));
}

}  // namespace
}  // namespace llava::model
