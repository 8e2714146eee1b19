#include "llava/model/pretrained.h"

#include "llava/base/files.h"
#include "llava/model/layouts.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"
#include "parity.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

#include <filesystem>
#include <map>

namespace llava {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::HasSubstr;
using torch::Tensor;

std::string golden(const std::string& name) { return std::string(LLAVA_GOLDEN) + "/" + name; }

/// Under our names, since transformers itself spells them in several ways.
using Names = std::map<std::string, Tensor>;
Names weights_of(const std::string& folder) {
  Names all;
  for (const auto& [name, tensor] : weights::load_folder(folder))
    all.emplace(model::our_name(name).value_or(name), tensor.clone());
  return all;
}

void expect_same(const Names& found, const Names& wanted) {
  for (const auto& [name, tensor] : wanted) {
    ASSERT_TRUE(found.count(name)) << name;
    EXPECT_TRUE(torch::equal(found.at(name), tensor)) << name;
  }
  EXPECT_EQ(found.size(), wanted.size());
}

/// A copy of a golden case's folder whose weights `change` may rename or drop.
void copy_with(const TemporaryFolder& folder, const std::string& name,
               const std::function<std::string(const std::string&)>& rename) {
  std::filesystem::copy(golden(name), folder.path(), std::filesystem::copy_options::recursive);
  weights::StateDict changed;
  for (const auto& [key, tensor] : weights::load_folder(golden(name)))
    if (const auto renamed = rename(key); !renamed.empty()) changed.add(renamed, tensor);
  weights::save_safetensors_folder(folder.path(), changed);
}

TEST(SavePretrained, HuggingFaceFoldersComeBackTensorForTensor) {
  for (const auto* name : {"llava-llama", "llava-qwen2-tied", "next-vicuna", "next-video"}) {
    const TemporaryFolder folder;
    auto loaded = model::load_pretrained(golden(name));
    model::save_pretrained(folder.path(), loaded.model, model::Layout::hugging_face, "");
    expect_same(weights_of(folder.path()), weights_of(golden(name)));
    const auto before = read_json(golden(name) + "/config.json");
    const auto after = read_json(folder / "config.json");
    EXPECT_EQ(after["model_type"], before["model_type"]);
    EXPECT_EQ(after["text_config"]["hidden_size"], before["text_config"]["hidden_size"]);
  }
}

TEST(SavePretrained, PackedWeightsAreRefused) {
  auto model = test::tiny_model();
  model->llama->layers->at<model::LlamaLayerImpl>(0).mlp->up_proj->pack(nn::Packing::bfloat16);
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::usage,
                       [&] {
                         model::save_pretrained(folder.path(), model, model::Layout::hugging_face,
                                                folder.path());
                       }),
              HasSubstr("llama.layers.0.mlp.up_proj is packed"));
}

TEST(SavePretrained, OriginalFoldersComeBackTensorForTensor) {
  for (const auto* name : {"original-linear", "original-mlp3-cls-patch", "original-class-token"}) {
    const TemporaryFolder folder;
    auto loaded = model::load_pretrained(golden(name));
    model::save_pretrained(folder.path(), loaded.model, model::Layout::original, "");
    expect_same(weights_of(folder.path()), weights_of(golden(name)));
  }
}

// Each layout's folder, loaded again, gives the same logits on the case's batch.
TEST(SavePretrained, EitherLayoutComputesTheSame) {
  for (const auto* name :
       {"llava-llama", "llava-full-gqa-two-layers", "next-mistral", "next-video"}) {
    test::ParityCase given(golden(name));
    const auto wanted = given.logits();
    const TemporaryFolder there, back;
    model::save_pretrained(there.path(), given.model, model::Layout::original, "");
    auto original = model::load_pretrained(there.path());
    EXPECT_EQ(original.model->config.layout, model::Layout::original);
    model::save_pretrained(back.path(), original.model, model::Layout::hugging_face, "");
    given.model = model::load_pretrained(back.path()).model;
    const auto rows = original.model->config.text.vocab_size;  // without <image> and spare rows
    EXPECT_TRUE(torch::equal(given.logits().slice(1, 0, rows), wanted.slice(1, 0, rows))) << name;
  }
}

TEST(SavePretrained, OriginalThroughHuggingFaceLosesNothing) {
  const TemporaryFolder original, there, back;
  auto config = test::tiny_config();
  config.layout = model::Layout::original;
  config.max_length = 99;
  auto made = test::tiny_model(config);
  model::save_pretrained(original.path(), made, model::Layout::original, "");
  auto loaded = model::load_pretrained(original.path());
  model::save_pretrained(there.path(), loaded.model, model::Layout::hugging_face, "");
  loaded = model::load_pretrained(there.path());
  EXPECT_EQ(loaded.model->config.text.vocab_size, 128);  // 64, <image> and <pad>, to 64s
  EXPECT_EQ(loaded.model->config.image_token_id, 64);
  model::save_pretrained(back.path(), loaded.model, model::Layout::original, "");
  expect_same(weights_of(back.path()), weights_of(original.path()));
  EXPECT_EQ(nlohmann::json(read_json(back / "config.json")),  // whatever the order of keys
            nlohmann::json(read_json(original / "config.json")));
}

TEST(SavePretrained, NewRowsAreTheMeanOfTheOld) {
  const TemporaryFolder folder;
  auto made = test::tiny_model();
  model::save_pretrained(folder.path(), made, model::Layout::hugging_face, "");
  const auto table = weights_of(folder.path()).at("llama.embed_tokens.weight");
  EXPECT_EQ(table.size(0), 128);
  const auto mean = made->llama->embed_tokens->weight.mean(0);
  EXPECT_LE(test::distance(table[64], mean), 1e-6);
  EXPECT_TRUE(torch::equal(table.slice(0, 0, 64), made->llama->embed_tokens->weight));
}

TEST(SavePretrained, ImageTokenOfAnotherNumberIsMovedNotDoubled) {
  const TemporaryFolder source, there;
  source.write("tokenizer.model", "pieces");
  source.write(
      "tokenizer_config.json",
      R"({"added_tokens_decoder": {"50": {"content": "<image>"}, "2": {"content": "</s>"}}})");
  auto made = test::tiny_model();
  model::save_pretrained(there.path(), made, model::Layout::hugging_face, source.path());
  std::map<std::string, int> texts;
  const auto written = read_json(there / "tokenizer_config.json");
  for (const auto& item : written["added_tokens_decoder"])
    ++texts[item["content"].get<std::string>()];
  EXPECT_EQ(texts, (std::map<std::string, int>{{"</s>", 1}, {"<image>", 1}, {"<pad>", 1}}));
}

TEST(SavePretrained, TokenizerFilesLearnAndForgetTheImageToken) {
  const TemporaryFolder source, there, back;
  source.write("tokenizer.model", "pieces");
  source.write("tokenizer_config.json",
               R"({"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>", "legacy": false})");
  auto made = test::tiny_model();
  model::save_pretrained(there.path(), made, model::Layout::hugging_face, source.path());
  EXPECT_EQ(read_file(there / "tokenizer.model"), "pieces");
  EXPECT_EQ(read_json(there / "added_tokens.json"), Json({{"<image>", 64}, {"<pad>", 65}}));
  const auto edited = read_json(there / "tokenizer_config.json");
  EXPECT_EQ(edited["added_tokens_decoder"]["64"]["content"], "<image>");
  EXPECT_EQ(edited["pad_token"], "<pad>");
  EXPECT_EQ(read_json(there / "config.json")["image_token_index"], 64);
  EXPECT_EQ(read_json(there / "config.json")["pad_token_id"], 65);

  auto loaded = model::load_pretrained(there.path());
  EXPECT_EQ(loaded.tokenizer_folder, there.path());
  model::save_pretrained(back.path(), loaded.model, model::Layout::original, there.path());
  EXPECT_EQ(read_json(back / "tokenizer_config.json"), read_json(source / "tokenizer_config.json"));
  EXPECT_FALSE(std::filesystem::exists(back / "added_tokens.json"));
}

TEST(SavePretrained, PublicTowerStaysOutsideUntilItLearns) {
  const TemporaryFolder folder, frozen, tuned;
  std::filesystem::copy(golden("original-linear"), folder.path(),
                        std::filesystem::copy_options::recursive);
  auto loaded = model::load_pretrained(folder.path());
  const auto has_tower = [](const TemporaryFolder& there) {
    const auto name = "model.vision_tower.vision_tower.vision_model.post_layernorm.weight";
    return weights::load_folder(there.path()).contains(name);
  };
  model::save_pretrained(frozen.path(), loaded.model, model::Layout::original, "");
  EXPECT_FALSE(has_tower(frozen));
  loaded.model->vision->post_layernorm->weight.requires_grad_(true);
  model::save_pretrained(tuned.path(), loaded.model, model::Layout::original, "");
  EXPECT_TRUE(has_tower(tuned));
  EXPECT_EQ(read_json(tuned / "config.json")["unfreeze_mm_vision_tower"], true);
}

TEST(LoadPretrained, EveryGenerationOfHuggingFaceNamesLoads) {
  const auto wanted = test::ParityCase(golden("next-vicuna")).logits();
  const auto replaced = [](std::string name, const std::string& from, const std::string& to) {
    return name.starts_with(from) ? to + name.substr(from.size()) : name;
  };
  const auto newer = [&](const std::string& name, const std::string& tower) {
    if (name == "language_model.lm_head.weight") return std::string("lm_head.weight");
    auto renamed = replaced(name, "language_model.model.", "model.language_model.");
    renamed = replaced(renamed, "vision_tower.", tower);
    renamed = replaced(renamed, "multi_modal_projector.", "model.multi_modal_projector.");
    return replaced(renamed, "image_newline", "model.image_newline");
  };
  for (const auto* tower : {"model.vision_tower.vision_model.", "model.vision_tower."}) {
    const TemporaryFolder folder;
    copy_with(folder, "next-vicuna", [&](const std::string& name) { return newer(name, tower); });
    EXPECT_TRUE(torch::equal(test::ParityCase(folder.path()).logits(), wanted));
  }
}

TEST(LoadPretrained, OldBuffersAreIgnored) {
  const TemporaryFolder folder;
  std::filesystem::copy(golden("llava-llama"), folder.path(),
                        std::filesystem::copy_options::recursive);
  weights::StateDict more;
  for (const auto& [key, tensor] : weights::load_folder(golden("llava-llama")))
    more.add(key, tensor);
  more.add("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", torch::ones({2}));
  more.add("vision_tower.vision_model.embeddings.position_ids", torch::arange(5));
  weights::save_safetensors_folder(folder.path(), more);
  EXPECT_NO_THROW(model::load_pretrained(folder.path()));
}

TEST(LoadPretrained, DtypeIsTheFilesOrTheOneAskedFor) {
  EXPECT_EQ(model::load_pretrained(golden("llava-bfloat16")).model->lm_head->weight.scalar_type(),
            torch::kBFloat16);
  model::LoadOptions options;
  options.dtype = torch::kFloat64;
  const auto loaded = model::load_pretrained(golden("llava-bfloat16"), options);
  for (const auto& parameter : loaded.model->parameters())
    EXPECT_EQ(parameter.scalar_type(), torch::kFloat64);
}

TEST(LoadPretrained, CountsTensorsThatLoseBits) {
  const TemporaryFolder folder;
  auto made = test::tiny_model();
  model::save_pretrained(folder.path(), made, model::Layout::hugging_face, "");
  weights::StateDict mixed;  // a decoder in half precision beside a tower in full
  std::int64_t wide = 0;
  for (const auto& [name, tensor] : weights::load_folder(folder.path())) {
    const bool is_wide = model::our_name(name)->starts_with("vision.");
    wide += is_wide;
    mixed.add(name, is_wide ? tensor.clone() : tensor.to(torch::kFloat16));
  }
  weights::save_safetensors(folder / "model.safetensors", mixed);
  EXPECT_EQ(model::load_pretrained(folder.path()).narrowed, wide);
  EXPECT_EQ(model::load_pretrained(folder.path(), {.dtype = torch::kFloat32}).narrowed, 0);
  EXPECT_EQ(model::load_pretrained(folder.path(), {.dtype = torch::kBFloat16}).narrowed,
            static_cast<std::int64_t>(mixed.size()));
}

TEST(LoadPretrained, NothingLearnsYet) {
  const auto loaded = model::load_pretrained(golden("llava-llama"));
  for (const auto& parameter : loaded.model->parameters()) EXPECT_FALSE(parameter.requires_grad());
  EXPECT_FALSE(loaded.model->is_training());
}

TEST(LoadPretrained, ListsEveryFaultAtOnce) {
  const TemporaryFolder folder;
  copy_with(folder, "llava-llama", [](const std::string& name) {
    if (name.ends_with("linear_2.bias") || name.ends_with("layers.1.mlp.up_proj.weight"))
      return std::string();
    return name.ends_with("layers.0.mlp.gate_proj.weight") ? "somebody.elses.weight" : name;
  });
  auto json = read_json(folder / "config.json");
  json["text_config"]["vocab_size"] = 65;
  folder.write("config.json", json.dump());
  const auto message = error_of(Fault::data, [&] { model::load_pretrained(folder.path()); });
  EXPECT_THAT(message, HasSubstr("3 tensors missing"));
  EXPECT_THAT(message, HasSubstr("multi_modal_projector.linear_2.bias"));
  EXPECT_THAT(message, HasSubstr("language_model.model.layers.1.mlp.up_proj.weight"));
  EXPECT_THAT(message, HasSubstr("1 tensor unexpected: \"somebody.elses.weight\""));
  EXPECT_THAT(message, HasSubstr("is [64, 16], not [65, 16]"));
  EXPECT_THAT(message, HasSubstr("is config.json from another model?"));
}

TEST(LoadPretrained, TensorUnderTwoNamesIsAnError) {
  const TemporaryFolder folder;
  std::filesystem::copy(golden("llava-llama"), folder.path(),
                        std::filesystem::copy_options::recursive);
  weights::StateDict twice;
  for (const auto& [key, tensor] : weights::load_folder(golden("llava-llama")))
    twice.add(key, tensor);
  twice.add("lm_head.weight", torch::ones({64, 16}));
  weights::save_safetensors_folder(folder.path(), twice);
  EXPECT_THAT(error_of(Fault::data, [&] { model::load_pretrained(folder.path()); }),
              HasSubstr("are the same tensor"));
}

TEST(LoadPretrained, HugeConfigAllocatesNothing) {
  const TemporaryFolder folder;
  copy_with(folder, "llava-llama", [](const std::string& name) { return name; });
  auto json = read_json(folder / "config.json");
  json["text_config"]["vocab_size"] = 16'000'000;
  json["text_config"]["intermediate_size"] = 16'000'000;
  folder.write("config.json", json.dump());
  error_of(Fault::data, [&] { model::load_pretrained(folder.path()); });
}

TEST(LoadPretrained, FoldersThatAreNoModelSaySo) {
  const TemporaryFolder empty;
  EXPECT_THAT(error_of(Fault::data, [&] { model::load_pretrained(empty.path()); }),
              HasSubstr("no weights here"));
  EXPECT_THAT(error_of(Fault::data, [&] { model::load_pretrained(empty / "absent"); }),
              HasSubstr("there is no such folder"));
  const TemporaryFolder folder;
  std::filesystem::copy(golden("original-linear"), folder.path(),
                        std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "tower");
  EXPECT_THAT(error_of(Fault::data, [&] { model::load_pretrained(folder.path()); }),
              HasSubstr("--vision_tower DIR"));
  model::LoadOptions options;
  options.vision_tower = golden("original-linear/tower");
  EXPECT_NO_THROW(model::load_pretrained(folder.path(), options));
}

/// A bare Llama and a bare CLIP folder, taken from a golden case.
struct BareParts {
  BareParts() {
    const auto json = read_json(golden("llava-llama/config.json"));
    text.write("config.json", json["text_config"].dump());
    vision.write("config.json", json["vision_config"].dump());
    weights::StateDict of_text, of_vision;
    for (const auto& [name, tensor] : weights::load_folder(golden("llava-llama"))) {
      const std::string_view language = "language_model.", tower = "vision_tower.";
      if (name.starts_with(language)) of_text.add(name.substr(language.size()), tensor);
      if (name.starts_with(tower)) of_vision.add(name.substr(tower.size()), tensor);
    }
    weights::save_safetensors_folder(text.path(), of_text);
    weights::save_safetensors_folder(vision.path(), of_vision);
  }
  TemporaryFolder text, vision;
};

TEST(Assemble, TakesTheFoldersAndStartsTheProjectorFromTheSeed) {
  const BareParts parts;
  auto wanted = model::named_shape("llava-1.5-7b");
  const auto made = [&](std::uint64_t seed) {
    return model::assemble(parts.vision.path(), parts.text.path(), wanted, seed).model;
  };
  const auto one = made(1), again = made(1), other = made(2);
  const auto source = model::load_pretrained(golden("llava-llama")).model;
  EXPECT_TRUE(torch::equal(one->lm_head->weight, source->lm_head->weight));
  EXPECT_TRUE(
      torch::equal(one->vision->pre_layrnorm->weight, source->vision->pre_layrnorm->weight));
  const auto weight = [](const model::Llava& model) { return model->projector->layers[0]->weight; };
  EXPECT_TRUE(torch::equal(weight(one), weight(again)));
  EXPECT_FALSE(torch::equal(weight(one), weight(other)));
  EXPECT_LE(weight(one).abs().max().item<float>(), 0.25f);  // 1 / sqrt(16)
  EXPECT_EQ(one->config.tiling.tile, 14);
  EXPECT_EQ(one->config.merge.side, 2);
}

TEST(Assemble, LanguageModelThatHasSeenPicturesKeepsItsTokenForThem) {
  const BareParts parts;
  const auto made = model::assemble(golden("llava-llama"), golden("llava-llama"),
                                    model::named_shape("llava-1.5-7b"), 1);
  const auto before = read_json(golden("llava-llama/config.json"));
  EXPECT_EQ(made.model->config.image_token_id, before["image_token_index"]);
  EXPECT_EQ(
      model::assemble(parts.vision.path(), parts.text.path(), model::named_shape("llava-1.5-7b"), 1)
          .model->config.image_token_id,
      -1);
}

TEST(Projector, TravelsAloneAsTheReferenceWritesIt) {
  const BareParts parts;
  const TemporaryFolder stage1, other;
  auto config = model::named_shape("llava-1.5-7b");
  auto trained = model::assemble(parts.vision.path(), parts.text.path(), config, 1).model;
  model::save_projector(stage1.path(), trained);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : weights::load_torch_file(stage1 / "mm_projector.bin"))
    names.push_back(name);
  EXPECT_THAT(names,
              testing::ElementsAre("model.mm_projector.0.weight", "model.mm_projector.0.bias",
                                   "model.mm_projector.2.weight", "model.mm_projector.2.bias"));

  auto fresh = model::assemble(parts.vision.path(), parts.text.path(), config, 2).model;
  model::load_projector(stage1.path(), fresh);
  EXPECT_TRUE(torch::equal(fresh->projector->layers[1]->bias, trained->projector->layers[1]->bias));

  // The folder and a bare language model are a whole.
  model::LoadOptions options;
  options.model_base = parts.text.path();
  const auto whole = model::load_pretrained(stage1.path(), options).model;
  const auto wanted = trained->named_parameters();
  for (const auto& item : whole->named_parameters())
    EXPECT_TRUE(torch::equal(item.value(), wanted[item.key()])) << item.key();
  EXPECT_THAT(error_of(Fault::data, [&] { model::load_pretrained(stage1.path()); }),
              HasSubstr("--model_base DIR"));
}

TEST(Projector, OfAnotherWidthIsRefused) {
  const TemporaryFolder folder;
  auto config = test::tiny_config();
  config.projector_type = "linear";
  auto linear = test::tiny_model(config);
  model::save_projector(folder.path(), linear);
  auto mlp = test::tiny_model();
  const auto before = mlp->projector->layers[0]->weight.clone();
  const auto message = error_of(Fault::data, [&] { model::load_projector(folder.path(), mlp); });
  EXPECT_THAT(message, HasSubstr("mm_projector.bin"));
  EXPECT_THAT(message, HasSubstr("4 tensors missing"));
  EXPECT_TRUE(torch::equal(mlp->projector->layers[0]->weight, before));
}

}  // namespace
}  // namespace llava
