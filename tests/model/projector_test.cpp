#include "llava/model/projector.h"

#include "support/expect_error.h"
#include "support/tiny_model.h"

namespace llava {
namespace {

model::Projector projector(const std::string& type, std::int64_t vision_width = 16) {
  auto config = test::tiny_config();
  config.projector_type = type;
  config.vision.hidden_size = vision_width;
  return model::Projector(config, torch::TensorOptions(torch::kFloat32));
}

TEST(Projector, NamesAreTheOriginals) {
  using testing::ElementsAre;
  EXPECT_THAT(projector("linear")->named_parameters().keys(), ElementsAre("weight", "bias"));
  EXPECT_THAT(projector("mlp1x_gelu")->named_parameters().keys(),
              ElementsAre("0.weight", "0.bias"));
  EXPECT_THAT(projector("mlp3x_gelu")->named_parameters().keys(),
              ElementsAre("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"));
  EXPECT_TRUE(projector("identity")->named_parameters().is_empty());
}

TEST(Projector, LinearHasNoActivation) {
  torch::NoGradGuard no_grad;
  auto linear = projector("linear");
  for (auto& weight : linear->parameters()) weight.fill_(-1);
  EXPECT_TRUE(torch::equal(linear(torch::ones({2, 16})), torch::full({2, 16}, -17.0f)));
}

// gelu(1) by erf is 0.841345; the tanh form differs in the fourth digit.
TEST(Projector, MlpHasErfGeluBetween) {
  torch::NoGradGuard no_grad;
  auto mlp = projector("mlp2x_gelu");
  for (auto& weight : mlp->parameters()) weight.zero_();
  mlp->layers[0]->bias.fill_(1);
  mlp->layers[1]->weight.copy_(torch::eye(16));
  EXPECT_NEAR(mlp(torch::zeros({1, 16}))[0][3].item<float>(), 0.8413447, 1e-6);
}

TEST(Projector, UnknownTypesAreRefused) {
  for (const auto* type : {"mlp0x_gelu", "mlpx_gelu", "mlp2x_relu", "pooler", "mlp999x_gelu", ""})
    EXPECT_THAT(support::error_of(Fault::data, [&] { projector(type); }),
                testing::HasSubstr("mlpNx_gelu"));
}

TEST(Projector, IdentityNeedsEqualWidths) {
  EXPECT_THAT(support::error_of(Fault::data, [] { projector("identity", 24); }),
              testing::HasSubstr("24"));
}

}  // namespace
}  // namespace llava
