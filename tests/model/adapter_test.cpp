#include "llava/model/adapter.h"

#include "llava/base/files.h"
#include "llava/model/pretrained.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

#include <filesystem>

namespace llava {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::HasSubstr;
using torch::Tensor;

Tensor logits(model::Llava& model) {
  const torch::NoGradGuard no_grad;
  model->eval();
  const auto embeds = model->llama->embed_tokens(torch::arange(3, 13));
  return model->logits(model->llama->forward(embeds, {0, 10}));
}

/// A model whose LoRA and projector have learned something.
model::Llava trained(model::Layout layout) {
  auto config = test::tiny_config();
  config.layout = layout;
  auto model = test::tiny_model(config);
  for (auto& parameter : model->parameters()) parameter.requires_grad_(false);
  nn::attach_lora(*model, model::is_lora_target, {.r = 4, .alpha = 6, .dropout = 0.1}, 3);
  torch::manual_seed(4);
  torch::NoGradGuard no_grad;
  for (auto& [name, linear] : nn::named_linears(*model))
    if (linear->has_lora()) linear->lora_B->weight.normal_();
  for (auto& parameter : model->projector->parameters()) {
    parameter.normal_();
    parameter.requires_grad_(true);
  }
  return model;
}

class Adapter : public testing::TestWithParam<model::Layout> {};

TEST_P(Adapter, ComesBackOverItsBase) {
  const TemporaryFolder folder;
  auto learned = trained(GetParam());
  model::save_adapter(folder.path(), learned, GetParam(), "some/base");
  EXPECT_TRUE(model::is_adapter(folder.path()));
  const auto config = model::read_adapter_config(folder.path());
  EXPECT_EQ(config.lora.r, 4);
  EXPECT_DOUBLE_EQ(config.lora.alpha, 6);
  EXPECT_DOUBLE_EQ(config.lora.dropout, 0.1);
  EXPECT_EQ(config.base_model, "some/base");

  auto base = test::tiny_model();
  model::load_adapter(folder.path(), base);
  EXPECT_TRUE(torch::equal(logits(base), logits(learned)));
  EXPECT_TRUE(torch::equal(base->projector->layers[1]->bias, learned->projector->layers[1]->bias));
  const auto before = logits(base);
  EXPECT_EQ(nn::merge_lora(*base), 14);
  EXPECT_LE((logits(base) - before).abs().max().item<double>(),
            1e-4 * before.abs().max().item<double>());
}
INSTANTIATE_TEST_SUITE_P(Layouts, Adapter,
                         testing::Values(model::Layout::original, model::Layout::hugging_face));

TEST(AdapterFiles, AreNamedAsPeftNamesThem) {
  const TemporaryFolder original, hugging_face;
  auto learned = trained(model::Layout::original);
  model::save_adapter(original.path(), learned, model::Layout::original, "");
  const auto pairs = weights::load_safetensors(original / "adapter_model.safetensors");
  EXPECT_EQ(pairs.size(), 2 * 14u);
  EXPECT_EQ(pairs.at("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").sizes(),
            (std::vector<std::int64_t>{4, 16}));
  const auto extra = weights::load_torch_file(original / "non_lora_trainables.bin");
  EXPECT_TRUE(extra.contains("base_model.model.model.mm_projector.0.weight"));
  EXPECT_EQ(extra.size(), 4u);
  const auto json = read_json(original / "adapter_config.json");
  EXPECT_EQ(json["lora_alpha"], 6);
  EXPECT_EQ(json["target_modules"].size(), 7u);

  learned = trained(model::Layout::hugging_face);
  learned->config.image_token_id = 63;
  model::save_adapter(hugging_face.path(), learned, model::Layout::hugging_face, "");
  EXPECT_TRUE(weights::load_safetensors(hugging_face / "adapter_model.safetensors")
                  .contains("base_model.model.model.language_model.layers.1.mlp.down_proj.lora_B."
                            "weight"));
}

/// PEFT reads adapter_model alone, so the trained projector is in it as well.
TEST(AdapterFiles, HoldTrainedModulesWherePeftLooksForThem) {
  const TemporaryFolder folder;
  auto learned = trained(model::Layout::hugging_face);
  model::save_adapter(folder.path(), learned, model::Layout::hugging_face, "");
  EXPECT_EQ(read_json(folder / "adapter_config.json")["modules_to_save"],
            Json({"multi_modal_projector"}));
  const auto file = weights::load_safetensors(folder / "adapter_model.safetensors");
  EXPECT_EQ(file.size(), 2 * 14u + 4);
  EXPECT_TRUE(torch::equal(file.at("base_model.model.model.multi_modal_projector.linear_2.bias"),
                           learned->projector->layers[1]->bias));
  EXPECT_EQ(model::extra_tensors(folder.path()).size(), 4u);

  std::filesystem::remove(folder / "non_lora_trainables.bin");
  auto base = test::tiny_model();
  model::load_adapter(folder.path(), base);
  EXPECT_TRUE(torch::equal(base->projector->layers[1]->bias, learned->projector->layers[1]->bias));
}

TEST(AdapterFiles, FolderAndBaseAreAWhole) {
  const TemporaryFolder base, adapter;
  auto plain = test::tiny_model();
  plain->config.layout = model::Layout::original;
  model::save_pretrained(base.path(), plain, model::Layout::original, "");
  auto learned = trained(model::Layout::original);
  model::save_adapter(adapter.path(), learned, model::Layout::original, base.path());
  auto whole = model::load_pretrained(adapter.path());  // its config names the base
  EXPECT_TRUE(torch::equal(logits(whole.model), logits(learned)));
}

TEST(AdapterFiles, SpellingsOfOthersLoad) {
  const TemporaryFolder folder;
  auto learned = trained(model::Layout::original);
  model::save_adapter(folder.path(), learned, model::Layout::original, "");
  weights::StateDict respelt;
  for (const auto& [name, tensor] :
       weights::load_safetensors(folder / "adapter_model.safetensors")) {
    auto other = name;
    other.replace(other.find(".weight"), 7, ".default.weight");
    other.insert(std::string("base_model.model.").size(), "model.");
    respelt.add(other, tensor);
  }
  weights::save_safetensors(folder / "adapter_model.safetensors", respelt);
  auto base = test::tiny_model();
  model::load_adapter(folder.path(), base);
  EXPECT_TRUE(torch::equal(logits(base), logits(learned)));
}

TEST(AdapterFiles, ScaleFollowsPatternsAndRslora) {
  const TemporaryFolder folder;
  auto learned = trained(model::Layout::original);
  model::save_adapter(folder.path(), learned, model::Layout::original, "");
  auto json = read_json(folder / "adapter_config.json");
  json["use_rslora"] = true;
  json["alpha_pattern"] = {{"layers.1.mlp.up_proj", 10}};
  folder.write("adapter_config.json", json.dump());
  auto base = test::tiny_model();
  model::load_adapter(folder.path(), base);
  const auto& layers = base->llama->layers;
  EXPECT_DOUBLE_EQ(layers->at<model::LlamaLayerImpl>(0).mlp->up_proj->lora_scale, 3);
  EXPECT_DOUBLE_EQ(layers->at<model::LlamaLayerImpl>(1).mlp->up_proj->lora_scale, 5);
}

TEST(AdapterFiles, MisfitsAreListedAndNothingIsTouched) {
  const TemporaryFolder folder;
  auto learned = trained(model::Layout::original);
  model::save_adapter(folder.path(), learned, model::Layout::original, "");
  weights::StateDict broken;
  for (const auto& [name, tensor] :
       weights::load_safetensors(folder / "adapter_model.safetensors")) {
    if (name.find("layers.0.mlp.up_proj.lora_A") != std::string::npos) continue;
    broken.add(name, name.find("layers.0.mlp.down_proj.lora_B") != std::string::npos
                         ? torch::zeros({17, 4})
                         : tensor.clone());
  }
  broken.add("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", torch::zeros({4, 16}));
  weights::save_safetensors(folder / "adapter_model.safetensors", broken);
  auto base = test::tiny_model();
  const auto before = logits(base);
  const auto message = error_of(Fault::data, [&] { model::load_adapter(folder.path(), base); });
  EXPECT_THAT(message, HasSubstr("llama.layers.0.mlp.up_proj has only one of lora_A and lora_B"));
  EXPECT_THAT(message, HasSubstr("llama.layers.0.mlp.down_proj has pairs of another width"));
  EXPECT_THAT(message, HasSubstr("llama.layers.7.mlp.up_proj is no layer"));
  EXPECT_TRUE(torch::equal(logits(base), before));
}

TEST(AdapterFiles, UnsupportedKindsAreRefusedByName) {
  const TemporaryFolder folder;
  const auto refused = [&](const char* json) {
    folder.write("adapter_config.json", json);
    return error_of(Fault::data, [&] { model::read_adapter_config(folder.path()); });
  };
  EXPECT_THAT(refused(R"({"peft_type": "IA3", "r": 4, "lora_alpha": 4})"), HasSubstr("IA3"));
  EXPECT_THAT(refused(R"({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": true})"),
              HasSubstr("use_dora"));
  EXPECT_THAT(refused(R"({"peft_type": "LORA", "lora_alpha": 4})"), HasSubstr("\"r\" is missing"));
}

TEST(AdapterFiles, UnmergedModelIsNotSavedWhole) {
  const TemporaryFolder folder;
  auto learned = trained(model::Layout::original);
  EXPECT_THAT(
      error_of(
          Fault::usage,
          [&] { model::save_pretrained(folder.path(), learned, model::Layout::original, ""); }),
      HasSubstr("unmerged LoRA"));
}

}  // namespace
}  // namespace llava
