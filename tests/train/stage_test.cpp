#include "llava/train/stage.h"

#include "llava/nn/lora.h"
#include "support/expect_error.h"
#include "tiny_training.h"

#include <gtest/gtest.h>

#include <set>

namespace llava::train {
namespace {

using support::error_of;
using ::testing::HasSubstr;

std::set<std::string> learning(const model::Llava& model) {
  std::set<std::string> names;
  for (const auto& item : model->named_parameters())
    if (item.value().requires_grad()) names.insert(item.key());
  return names;
}

bool any_begins(const std::set<std::string>& names, const std::string& start) {
  for (const auto& name : names)
    if (name.starts_with(start)) return true;
  return false;
}

TEST(Stage, PresetsAreThoseOfTheReference) {
  EXPECT_TRUE(read_tune({.tune_mm_mlp_adapter = true}).is_projector_only());
  const Tune two = read_tune({});
  EXPECT_EQ(two.vision, Tuning::none);
  EXPECT_EQ(two.projector, Tuning::full);
  EXPECT_EQ(two.llm, Tuning::full);
  EXPECT_EQ(read_tune({.lora_enable = true}).llm, Tuning::lora);
  const Tune mixed = read_tune({.tune = "vision=full,projector=none", .lora_enable = true});
  EXPECT_EQ(mixed.vision, Tuning::full);
  EXPECT_EQ(mixed.projector, Tuning::none);
  EXPECT_EQ(mixed.llm, Tuning::lora);
}

TEST(Stage, OneTrainsTheProjectorAlone) {
  auto model = test::model_by_name("mlp2x_gelu");
  choose_stage(model, {.tune_mm_mlp_adapter = true}, 1e-3, 0, 0);
  EXPECT_EQ(learning(model), (std::set<std::string>{"projector.0.weight", "projector.0.bias",
                                                    "projector.2.weight", "projector.2.bias"}));
}

TEST(Stage, TowerLearnsUpToTheLayerThatIsUsed) {
  auto model = test::model_by_name("mlp2x_gelu");  // layer -2 of two: the first block's output
  choose_stage(model, {.tune = "vision=full,projector=none,llm=none"}, 1, 0, 0);
  const auto names = learning(model);
  EXPECT_TRUE(any_begins(names, "vision.encoder.layers.0."));
  EXPECT_TRUE(any_begins(names, "vision.embeddings."));
  EXPECT_FALSE(any_begins(names, "vision.encoder.layers.1."));
  EXPECT_FALSE(any_begins(names, "vision.post_layernorm"));
  EXPECT_FALSE(any_begins(names, "llama."));
}

TEST(Stage, GroupsHaveTheirRatesAndNormsAndBiasesNoDecay) {
  auto model = test::model_by_name("mlp2x_gelu");
  const auto groups = choose_stage(
      model, {.tune = "vision=full", .mm_projector_lr = 2e-5, .mm_vision_tower_lr = 2e-6}, 2e-4,
      0.1, 0);
  std::set<std::string> seen;
  for (const auto& group : groups) {
    const double rate = group.part == "vision" ? 2e-6 : group.part == "projector" ? 2e-5 : 2e-4;
    EXPECT_EQ(group.learning_rate, rate) << group.part;
    for (const auto& [name, parameter] : group.parameters) {
      const bool plain =
          name.find("norm") != std::string::npos || name.find("bias") != std::string::npos;
      EXPECT_EQ(group.weight_decay, plain ? 0 : 0.1) << name;
      EXPECT_TRUE(seen.insert(name).second) << name << " is in two groups";
    }
  }
  EXPECT_EQ(seen, learning(model));
}

TEST(Stage, LoraTrainsItsPairsProjectorAndNewline) {
  auto config = llava::test::tiny_config();
  config.has_newline = config.merge.unpad = config.merge.spatial = true;
  auto model = llava::test::tiny_model(config);
  choose_stage(model, {.lora_enable = true, .lora_r = 4}, 1, 0, 3);
  const auto names = learning(model);
  EXPECT_EQ(names.size(),
            2u * 7 * 2 + 4 + 1);  // pairs of 7 Linears in 2 layers, projector, newline
  EXPECT_TRUE(names.count("llama.layers.1.mlp.down_proj.lora_B.weight"));
  EXPECT_TRUE(names.count("image_newline"));
  EXPECT_FALSE(any_begins(names, "lm_head"));
  EXPECT_FALSE(any_begins(names, "vision."));
}

TEST(Stage, ModelWithAnAdapterNeedsLora) {
  auto model = test::model_by_name("mlp2x_gelu");
  choose_stage(model, {.lora_enable = true, .lora_r = 4}, 1, 0, 3);
  EXPECT_THAT(error_of(Fault::usage, [&] { choose_stage(model, {}, 1, 0, 3); }),
              HasSubstr("--lora_enable"));
  choose_stage(model, {.lora_enable = true}, 1, 0, 3);  // goes on with the pairs it has
  EXPECT_EQ(model->llama->layers->size(), 2u);
}

TEST(Stage, TableSaysWhatLearns) {
  auto model = test::model_by_name("mlp2x_gelu", torch::kBFloat16);
  const StageConfig config{.tune_mm_mlp_adapter = true};
  const auto text = describe_stage(model, config, choose_stage(model, config, 1e-3, 0.1, 0));
  EXPECT_THAT(text, HasSubstr("projector  full           512          0.001           0.1  "
                              "BFloat16, fp32 masters"));
  EXPECT_THAT(text, HasSubstr("llm        frozen"));
  EXPECT_THAT(text, HasSubstr("544 of"));
}

TEST(Stage, RefusesWhatMakesNoSense) {
  const auto message = [](const StageConfig& config) {
    return error_of(Fault::usage, [&] { read_tune(config); });
  };
  EXPECT_THAT(message({.tune = "projectr=full"}), HasSubstr("did you mean \"projector\"?"));
  EXPECT_THAT(message({.tune = "vision=lora"}), HasSubstr("vision cannot be \"lora\""));
  EXPECT_THAT(message({.tune = "llm"}), HasSubstr("expected part=none|full"));
  EXPECT_THAT(message({.tune = "llm=none,llm=full"}), HasSubstr("twice"));
  EXPECT_THAT(message({.tune = "projector=none,llm=none"}), HasSubstr("nothing learns"));
  EXPECT_THAT(message({.lora_enable = true, .lora_r = 0}), HasSubstr("--lora_r"));
  EXPECT_THAT(message({.lora_enable = true, .lora_dropout = 1}), HasSubstr("--lora_dropout"));
  EXPECT_THAT(message({.tune_mm_mlp_adapter = true, .lora_enable = true}), HasSubstr("--tune"));
}

}  // namespace
}  // namespace llava::train
