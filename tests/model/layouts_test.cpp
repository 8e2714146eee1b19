#include "llava/model/layouts.h"

#include "llava/model/llava.h"

#include <gtest/gtest.h>

#include <set>

namespace llava::model {
namespace {

// Each row is one tensor as the files of the world call it.
// Source: transformers 5.24 (HF old, new on disk, new in memory), haotian-liu/LLaVA 1.2.2,
// lmsys/vicuna-7b-v1.5, openai/clip-vit-large-patch14-336, huggingface/peft.
struct Row {
  const char* ours;
  std::vector<const char*> theirs;
};
const Row kRows[] = {
    {"llama.embed_tokens.weight",
     {"model.embed_tokens.weight", "language_model.model.embed_tokens.weight",
      "model.language_model.embed_tokens.weight", "model.language_model.model.embed_tokens.weight",
      "embed_tokens.weight", "module.model.embed_tokens.weight",
      "base_model.model.model.embed_tokens.weight"}},
    {"llama.layers.11.self_attn.q_proj.weight",
     {"model.layers.11.self_attn.q_proj.weight",
      "language_model.model.layers.11.self_attn.q_proj.weight",
      "model.language_model.layers.11.self_attn.q_proj.weight", "layers.11.self_attn.q_proj.weight",
      "base_model.model.model.layers.11.self_attn.q_proj.weight",
      "base_model.model.model.model.layers.11.self_attn.q_proj.weight",
      "base_model.model.model.language_model.layers.11.self_attn.q_proj.weight",
      "base_model.model.language_model.model.layers.11.self_attn.q_proj.weight"}},
    {"llama.norm.weight",
     {"model.norm.weight", "language_model.model.norm.weight", "model.language_model.norm.weight",
      "norm.weight"}},
    {"lm_head.weight",
     {"lm_head.weight", "language_model.lm_head.weight", "model.language_model.lm_head.weight",
      "base_model.model.lm_head.weight"}},
    {"vision.embeddings.class_embedding",
     {"vision_model.embeddings.class_embedding",
      "vision_tower.vision_model.embeddings.class_embedding",
      "vision_tower.embeddings.class_embedding",
      "model.vision_tower.vision_model.embeddings.class_embedding",
      "model.vision_tower.embeddings.class_embedding",
      "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
      "model.vision_tower.vision_tower.embeddings.class_embedding", "embeddings.class_embedding"}},
    {"vision.pre_layrnorm.bias", {"vision_model.pre_layrnorm.bias", "pre_layrnorm.bias"}},
    {"vision.encoder.layers.3.mlp.fc1.bias",
     {"vision_model.encoder.layers.3.mlp.fc1.bias", "encoder.layers.3.mlp.fc1.bias",
      "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1."
      "bias"}},
    {"vision.post_layernorm.weight",
     {"vision_tower.vision_model.post_layernorm.weight", "post_layernorm.weight"}},
    {"projector.0.weight",
     {"model.mm_projector.0.weight", "mm_projector.0.weight",
      "multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.weight",
      "module.model.mm_projector.0.weight", "base_model.model.model.mm_projector.0.weight",
      "base_model.model.model.model.mm_projector.0.weight"}},
    {"projector.2.bias",
     {"model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias",
      "model.multi_modal_projector.linear_2.bias"}},
    {"projector.4.bias", {"model.mm_projector.4.bias"}},
    {"projector.weight", {"model.mm_projector.weight", "mm_projector.weight"}},
    {"image_newline",
     {"image_newline", "model.image_newline", "base_model.model.model.image_newline"}},
};

TEST(Layouts, EveryNameOfTheWorldHasOneOfOurs) {
  for (const auto& row : kRows)
    for (const auto* name : row.theirs) {
      EXPECT_EQ(our_name(name), row.ours) << name;
      EXPECT_FALSE(is_ignored(name)) << name;
    }
}

TEST(Layouts, IgnoresWhatNoModelNeeds) {
  for (const auto* name :
       {"model.layers.0.self_attn.rotary_emb.inv_freq", "vision_model.embeddings.position_ids",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
        "text_model.final_layer_norm.weight", "module.text_model.final_layer_norm.weight",
        "logit_scale", "text_projection.weight", "visual_projection.weight"})
    EXPECT_TRUE(is_ignored(name)) << name;
}

TEST(Layouts, NamesThatNoLlavaHasAreNotGuessed) {
  for (const auto* name :
       {"", "model.", "transformer.h.0.attn.weight", "model.vision_resampler.x",
        "visual.conv1.weight", "xmodel.norm.weight", "language_model.norm.weight",
        "multi_modal_projector.linear_3.weight", "model.mm_projector"})
    EXPECT_EQ(our_name(name), std::nullopt) << name;
}

TEST(Layouts, FilesAreWrittenAsTheirReadersExpect) {
  const auto hugging_face = [](const char* ours) {
    return layout_name(ours, Layout::hugging_face);
  };
  EXPECT_EQ(hugging_face("llama.norm.weight"), "language_model.model.norm.weight");
  EXPECT_EQ(hugging_face("lm_head.weight"), "language_model.lm_head.weight");
  EXPECT_EQ(hugging_face("vision.pre_layrnorm.bias"),
            "vision_tower.vision_model.pre_layrnorm.bias");
  EXPECT_EQ(hugging_face("projector.0.weight"), "multi_modal_projector.linear_1.weight");
  EXPECT_EQ(hugging_face("projector.2.bias"), "multi_modal_projector.linear_2.bias");
  EXPECT_EQ(hugging_face("image_newline"), "image_newline");

  const auto original = [](const char* ours) { return layout_name(ours, Layout::original); };
  EXPECT_EQ(original("llama.norm.weight"), "model.norm.weight");
  EXPECT_EQ(original("lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(original("vision.pre_layrnorm.bias"),
            "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias");
  EXPECT_EQ(original("projector.0.weight"), "model.mm_projector.0.weight");
  EXPECT_EQ(original("projector.weight"), "model.mm_projector.weight");
  EXPECT_EQ(original("image_newline"), "model.image_newline");

  EXPECT_EQ(module_name("llama.layers.0.mlp.up_proj.weight", Layout::hugging_face),
            "model.language_model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(module_name("llama.norm.weight", Layout::original), "model.norm.weight");
}

// Every tensor of a model goes out and comes back under its name, and no two meet on the way.
TEST(Layouts, RoundTripsEveryTensorOfAModel) {
  LlavaConfig config;
  config.vision.num_hidden_layers = config.text.num_hidden_layers = 2;
  config.has_newline = true;
  config.text.attention_bias = true;
  const Llava model(config, torch::TensorOptions(torch::kFloat32).device(torch::kMeta));
  for (const auto layout : {Layout::hugging_face, Layout::original}) {
    std::set<std::string> files, modules;
    for (const auto& item : model->named_parameters()) {
      const auto file = layout_name(item.key(), layout), module = module_name(item.key(), layout);
      EXPECT_TRUE(files.insert(file).second) << file;
      EXPECT_TRUE(modules.insert(module).second) << module;
      EXPECT_EQ(our_name(file), item.key());
      EXPECT_EQ(our_name(module), item.key());
      EXPECT_EQ(our_name("base_model.model." + module), item.key()) << "as PEFT writes it";
    }
    const std::size_t text = 2 * 12 + 3, vision = 2 * 16 + 7, projector = 4, newline = 1;
    EXPECT_EQ(files.size(), text + vision + projector + newline);
  }
}

}  // namespace
}  // namespace llava::model
