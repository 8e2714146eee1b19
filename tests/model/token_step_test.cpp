#include "llava/model/token_step.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

#include <gtest/gtest.h>

namespace llava::model {
namespace {

using torch::Tensor;

LlavaConfig wide_config() {
  auto config = test::tiny_config();
  config.text.hidden_size = 96;  // no whole number of groups of 64
  config.text.intermediate_size = 160;
  config.text.num_attention_heads = 6;
  config.text.num_key_value_heads = 3;
  config.text.head_dim = 16;
  config.text.attention_bias = true;
  return config;
}

void pack(Llava& model, nn::Packing packing) {
  nn::pack_linears(*model->llama, packing);
  nn::pack_linears(*model->lm_head, nn::Packing::int8);
}

class TokenStep : public testing::Test {
 protected:
  void SetUp() override {
    if (!nn::TokenStep::is_possible()) GTEST_SKIP() << "this CPU has no AVX512-BF16";
  }
  torch::NoGradGuard no_grad;
};

TEST_F(TokenStep, GivesTheBitsOfTheModules) {
  for (const auto packing : {nn::Packing::bfloat16, nn::Packing::int8, nn::Packing::int4}) {
    auto model = test::tiny_model(wide_config(), 1, torch::kBFloat16);
    for (auto& item : model->llama->named_parameters())
      if (item.key().ends_with("bias")) item.value().normal_();
    pack(model, packing);
    const auto step = make_token_step(model);
    ASSERT_TRUE(step);
    std::vector<nn::KvCache> caches, others;
    for (const std::int64_t length : {3, 1, 20}) {
      for (auto* list : {&caches, &others}) {
        list->push_back(make_cache(model->llama, 40));
        torch::manual_seed(length);
        model->llama->forward(torch::randn({length, 96}).to(torch::kBFloat16), {0, length},
                              {&list->back()});
      }
    }
    for (std::int64_t round = 0; round < 12; ++round) {
      const std::vector<std::int64_t> ids{3 + round, 60 - round, 7};
      const auto found = torch::empty({3, 64});
      std::vector<nn::NextToken> tokens;
      for (std::size_t row = 0; row < 3; ++row)
        tokens.push_back({ids[row], &caches[row], found.data_ptr<float>() + row * 64});
      step->forward(tokens);
      const auto hidden = model->llama->forward(model->llama->embed_tokens(torch::tensor(ids)),
                                                {0, 1, 2, 3}, {&others[0], &others[1], &others[2]});
      EXPECT_TRUE(torch::equal(found, model->logits(hidden))) << round;
      EXPECT_EQ(caches[2].length(), others[2].length());
    }
  }
}

TEST_F(TokenStep, ScaledPositionsAreTheModules) {
  auto config = wide_config();
  config.text.max_position_embeddings = 8;
  config.text.rope_scaling = RopeScaling{.type = "dynamic", .factor = 2};
  auto model = test::tiny_model(config, 1, torch::kBFloat16);
  pack(model, nn::Packing::bfloat16);
  auto cache = make_cache(model->llama, 40), other = make_cache(model->llama, 40);
  const auto step = make_token_step(model);
  ASSERT_TRUE(step);
  for (std::int64_t id = 1; id < 20; ++id) {
    const auto found = torch::empty({1, 64});
    const nn::NextToken token{id, &cache, found.data_ptr<float>()};
    step->forward({&token, 1});
    const auto hidden =
        model->llama->forward(model->llama->embed_tokens(torch::tensor({id})), {0, 1}, {&other});
    EXPECT_TRUE(torch::equal(found, model->logits(hidden))) << id;
  }
}

TEST_F(TokenStep, AFullCacheLeavesAllAsTheyWere) {
  auto model = test::tiny_model(wide_config(), 1, torch::kBFloat16);
  pack(model, nn::Packing::bfloat16);
  auto roomy = make_cache(model->llama, 4), full = make_cache(model->llama, 1);
  const auto step = make_token_step(model);
  const auto logits = torch::empty({2, 64});
  nn::NextToken tokens[] = {{1, &roomy, logits.data_ptr<float>()},
                            {2, &full, logits.data_ptr<float>() + 64}};
  step->forward(tokens);
  EXPECT_NE(support::error_of(Fault::capacity, [&] { step->forward(tokens); }).find("holds 1"),
            std::string::npos);
  for (const std::int64_t id : {-1, 64}) {
    const nn::NextToken unknown{id, &roomy, logits.data_ptr<float>()};
    support::error_of(Fault::usage, [&] { step->forward({&unknown, 1}); });
  }
  EXPECT_EQ(roomy.length(), 1);
  EXPECT_EQ(full.length(), 1);
}

TEST_F(TokenStep, IsLeftToTheModulesWhereItCannotBe) {
  auto whole = test::tiny_model(wide_config(), 1, torch::kBFloat16);
  EXPECT_FALSE(make_token_step(whole));  // not packed
  auto wide = test::tiny_model(wide_config(), 1, torch::kFloat32);
  pack(wide, nn::Packing::int8);
  EXPECT_FALSE(make_token_step(wide));
  auto config = wide_config();
  config.text.sliding_window = 16;
  auto windowed = test::tiny_model(config, 1, torch::kBFloat16);
  pack(windowed, nn::Packing::int8);
  EXPECT_FALSE(make_token_step(windowed));
}

}  // namespace
}  // namespace llava::model
