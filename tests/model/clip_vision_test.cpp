#include "llava/model/clip_vision.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

namespace llava {
namespace {

using torch::Tensor;

model::ClipVision tower() { return test::tiny_model()->vision; }
Tensor pixels() {
  torch::manual_seed(2);
  return torch::randn({3, 3, 28, 28});
}

TEST(ClipVision, NamesAreACheckpoints) {
  const auto names = tower()->named_parameters().keys();
  for (const auto* name :
       {"embeddings.class_embedding", "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight", "pre_layrnorm.weight",
        "encoder.layers.1.self_attn.out_proj.bias", "encoder.layers.0.mlp.fc1.weight",
        "encoder.layers.0.layer_norm2.bias", "post_layernorm.weight"})
    EXPECT_THAT(names, testing::Contains(name));
  EXPECT_EQ(names.size(), 7 + 2 * 16u);  // CLIP-L's 391 for 24 layers
}

TEST(ClipVision, EntriesCountFromEitherEnd) {
  const torch::NoGradGuard no_grad;
  auto vision = tower();
  const auto all = vision->forward(pixels(), {0, 1, 2});
  EXPECT_EQ(all[0].sizes(), (std::vector<std::int64_t>{3, 5, 16}));
  const auto back = vision->forward(pixels(), {-1, -3});
  EXPECT_TRUE(torch::equal(back[0], all[2]));
  EXPECT_TRUE(torch::equal(back[1], all[0]));
  EXPECT_FALSE(torch::equal(all[1], all[2]));
}

TEST(ClipVision, BlocksBehindTheEntryAreNotRun) {
  const torch::NoGradGuard no_grad;
  auto vision = tower();
  const auto before = vision->forward(pixels(), {-2})[0];
  vision->encoder->layers->at<model::ClipLayerImpl>(1).mlp->fc1->weight.fill_(NAN);
  vision->post_layernorm->weight.fill_(NAN);
  EXPECT_TRUE(torch::equal(vision->forward(pixels(), {-2})[0], before));
}

TEST(ClipVision, TilesAreBlindToEachOther) {
  const torch::NoGradGuard no_grad;
  auto vision = tower();
  const auto together = vision->forward(pixels(), {-1})[0];
  const auto alone = vision->forward(pixels().slice(0, 1, 2), {-1})[0];
  EXPECT_LE((together.slice(0, 1, 2) - alone).abs().max().item<float>(), 1e-6);
}

TEST(ClipVision, RecomputeChangesNoGradient) {
  auto vision = tower();
  const auto gradients = [&](nn::Recompute mode) {
    vision->recompute = mode;
    vision->zero_grad();
    vision->forward(pixels(), {-1})[0].square().sum().backward();
    return vision->encoder->layers->at<model::ClipLayerImpl>(0).mlp->fc1->weight.grad().clone();
  };
  EXPECT_TRUE(torch::equal(gradients(nn::Recompute::full), gradients(nn::Recompute::none)));
}

TEST(ClipVision, MissingEntryIsAnError) {
  auto vision = tower();
  EXPECT_THAT(support::error_of(Fault::usage, [&] { vision->forward(pixels(), {3}); }),
              testing::HasSubstr("hidden state 3"));
}

}  // namespace
}  // namespace llava
