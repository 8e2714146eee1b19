#include "llava/model/config.h"

#include "support/expect_error.h"
#include "support/temporary_folder.h"

namespace llava {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

model::LlavaConfig read(const TemporaryFolder& folder, const Json& json) {
  folder.write("config.json", json.dump());
  return model::read_llava_config(folder.path());
}

std::string refusal(const Json& json) {
  const TemporaryFolder folder;
  return error_of(Fault::data, [&] { read(folder, json); });
}

// What llava-hf/llava-1.5-7b-hf's config.json says; everything else is its classes' defaults.
Json public_hugging_face() {
  return Json::parse(R"({
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
    "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
    "projector_hidden_act": "gelu", "torch_dtype": "float16", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "max_position_embeddings": 4096,
                    "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064},
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
                      "model_type": "clip_vision_model", "num_attention_heads": 16,
                      "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}})");
}

// What liuhaotian/llava-v1.6-vicuna-7b's config.json says.
Json public_original() {
  return Json::parse(R"({
    "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "rope_scaling": null, "vocab_size": 32000, "torch_dtype": "bfloat16",
    "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch", "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "unfreeze_mm_vision_tower": true, "tokenizer_model_max_length": 4096})");
}

TEST(Config, ReadsThePublicHuggingFaceFile) {
  const TemporaryFolder folder;
  const auto config = read(folder, public_hugging_face());
  EXPECT_EQ(config.layout, model::Layout::hugging_face);
  EXPECT_EQ(config.text.hidden_size, 4096);
  EXPECT_EQ(config.text.num_hidden_layers, 32);
  EXPECT_EQ(config.text.head_dim, 128);
  EXPECT_EQ(config.text.num_key_value_heads, 32);
  EXPECT_EQ(config.text.vocab_size, 32064);
  EXPECT_EQ(config.vision.side(), 24);
  EXPECT_EQ(config.vision.hidden_act, "quick_gelu");
  EXPECT_EQ(config.image_token_id, 32000);
  EXPECT_EQ(config.torch_dtype, "float16");
  EXPECT_EQ(config.tiling.aspect, media::Aspect::square);
  EXPECT_FALSE(config.has_newline);
  EXPECT_THAT(config.feature_layers, ElementsAre(-2));
  EXPECT_THAT(config.text.eos_token_ids, ElementsAre(2));
}

TEST(Config, ReadsThePublicOriginalFile) {
  const TemporaryFolder folder;
  const auto config = read(folder, public_original());
  EXPECT_EQ(config.layout, model::Layout::original);
  EXPECT_EQ(config.vision.image_size, 336);
  EXPECT_EQ(config.vision.num_hidden_layers, 24);
  EXPECT_TRUE(config.has_newline);
  EXPECT_TRUE(config.merge.unpad);
  EXPECT_TRUE(config.tower_in_weights);
  EXPECT_EQ(config.tiling.aspect, media::Aspect::anyres);
  EXPECT_THAT(config.tiling.pinpoints, ElementsAre(Pair(336, 672), Pair(672, 336), Pair(672, 672),
                                                   Pair(1008, 336), Pair(336, 1008)));
  EXPECT_EQ(config.max_length, 4096);
}

TEST(Config, ClassDefaultsAreEachDecodersOwn) {
  auto json = public_hugging_face();
  const TemporaryFolder folder;
  json["text_config"] = {{"model_type", "mistral"}};
  const auto mistral = read(folder, json).text;
  EXPECT_EQ(mistral.intermediate_size, 14336);
  EXPECT_EQ(mistral.num_key_value_heads, 8);
  EXPECT_EQ(mistral.sliding_window, 4096);
  json["text_config"]["sliding_window"] = nullptr;
  EXPECT_EQ(read(folder, json).text.sliding_window, 0);
  json["text_config"] = {{"model_type", "qwen2"}};
  const auto qwen = read(folder, json).text;
  EXPECT_EQ(qwen.vocab_size, 151936);
  EXPECT_TRUE(qwen.attention_bias);
  EXPECT_FALSE(qwen.attention_output_bias);
  EXPECT_EQ(qwen.sliding_window, 0);
  json["text_config"] = {{"model_type", "llama"}, {"attention_bias", true}};
  const auto llama = read(folder, json).text;
  EXPECT_EQ(llama.max_position_embeddings, 2048);
  EXPECT_DOUBLE_EQ(llama.rms_norm_eps, 1e-6);
  EXPECT_TRUE(llama.attention_output_bias);
}

TEST(Config, ReadsBothSpellingsOfRope) {
  auto json = public_hugging_face();
  const TemporaryFolder folder;
  auto& text = json["text_config"];
  text["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  text["rope_theta"] = 50000;
  const auto older = read(folder, json).text;
  EXPECT_EQ(older.rope_scaling->type, "linear");
  EXPECT_DOUBLE_EQ(older.rope_scaling->factor, 2.5);
  EXPECT_DOUBLE_EQ(older.rope_theta, 50000);
  text.erase("rope_scaling");
  text.erase("rope_theta");
  text["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 500000.0},
                             {"factor", 8.0},           {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  const auto newer = read(folder, json).text;
  EXPECT_EQ(newer.rope_scaling->type, "llama3");
  EXPECT_DOUBLE_EQ(newer.rope_theta, 500000);
  text["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_FALSE(read(folder, json).text.rope_scaling);
}

TEST(Config, GenerationConfigKnowsMoreEnds) {
  const TemporaryFolder folder;
  folder.write("generation_config.json", R"({"eos_token_id": [2, 32007]})");
  EXPECT_THAT(read(folder, public_hugging_face()).text.eos_token_ids, ElementsAre(2, 32007));
  folder.write("generation_config.json", R"({"eos_token_id": [2, 32064]})");
  EXPECT_THAT(error_of(Fault::data, [&] { read(folder, public_hugging_face()); }),
              HasSubstr("\"eos_token_id\" is 32064 but the vocabulary has 32064 tokens"));
}

TEST(Config, PreprocessorDecidesHowPicturesAreCut) {
  const TemporaryFolder folder;
  folder.write("preprocessor_config.json", R"({
    "image_processor_type": "LlavaImageProcessor", "do_pad": true, "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336}, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25]})");
  const auto pads = read(folder, public_hugging_face()).tiling;
  EXPECT_EQ(pads.aspect, media::Aspect::pad);
  EXPECT_DOUBLE_EQ(pads.mean[0], 0.5);
  EXPECT_DOUBLE_EQ(pads.std[2], 0.25);
  folder.write("preprocessor_config.json",
               R"({"image_processor_type": "CLIPImageProcessor", "size": 336, "crop_size": 336})");
  EXPECT_EQ(read(folder, public_hugging_face()).tiling.aspect, media::Aspect::square);
  folder.write("preprocessor_config.json", R"({"size": 224, "crop_size": 224})");
  EXPECT_THAT(error_of(Fault::data, [&] { read(folder, public_hugging_face()); }),
              HasSubstr("crop_size\" is 224 but the vision tower takes tiles of 336"));
}

TEST(Config, GridsMayBeTextOrARange) {
  auto json = public_original();
  const TemporaryFolder folder;
  json["image_grid_pinpoints"] = "[(336, 672), (672, 336)]";
  EXPECT_THAT(read(folder, json).tiling.pinpoints, ElementsAre(Pair(336, 672), Pair(672, 336)));
  json["image_grid_pinpoints"] = "(1x1),...,(2x3)";
  EXPECT_THAT(read(folder, json).tiling.pinpoints,
              ElementsAre(Pair(336, 336), Pair(336, 672), Pair(336, 1008), Pair(672, 336),
                          Pair(672, 672), Pair(672, 1008)));
  json["image_aspect_ratio"] = "anyres_max_9";
  EXPECT_EQ(read(folder, json).merge.max_tiles, 9);
}

TEST(Config, WhatCannotBeRightIsRefusedByName) {
  const auto hugging_face = [](const char* part, const char* key, const Json& value) {
    auto json = public_hugging_face();
    json[part][key] = value;
    return refusal(json);
  };
  EXPECT_THAT(
      hugging_face("text_config", "hidden_size", "wide"),
      HasSubstr("\"text_config\": \"hidden_size\": expected a whole number, found \"wide\""));
  EXPECT_THAT(hugging_face("text_config", "hidden_size", -4096),
              HasSubstr("hidden_size\" is -4096"));
  EXPECT_THAT(hugging_face("text_config", "num_hidden_layers", 1'000'000'000'000),
              HasSubstr("num_hidden_layers"));
  EXPECT_THAT(hugging_face("text_config", "num_key_value_heads", 5),
              HasSubstr("no multiple of num_key_value_heads 5"));
  EXPECT_THAT(hugging_face("text_config", "model_type", "mpt"),
              HasSubstr("\"mpt\"; this program has llama, mistral and qwen2"));
  EXPECT_THAT(hugging_face("text_config", "hidden_act", "gelu"), HasSubstr("hidden_act"));
  EXPECT_THAT(hugging_face("text_config", "rope_scaling", {{"type", "yarn"}, {"factor", 2}}),
              HasSubstr("\"yarn\""));
  EXPECT_THAT(hugging_face("text_config", "rope_scaling", {{"type", "linear"}}),
              HasSubstr("\"factor\" is missing"));
  EXPECT_THAT(hugging_face("vision_config", "model_type", "siglip_vision_model"),
              HasSubstr("siglip_vision_model"));
  EXPECT_THAT(hugging_face("vision_config", "patch_size", 0), HasSubstr("patch_size\" is 0"));
  auto json = public_hugging_face();
  json["vision_feature_layer"] = 40;
  EXPECT_THAT(refusal(json), HasSubstr("there is no hidden state 40"));
}

TEST(Config, OriginalNeedsItsLayerAndItsTower) {
  auto json = public_original();
  json.erase("mm_vision_select_layer");
  EXPECT_THAT(refusal(json), HasSubstr("\"mm_vision_select_layer\" is missing"));
  json = public_original();
  json["mm_vision_tower"] = "somebody/own-tower";
  EXPECT_THAT(refusal(json), HasSubstr("--vision_tower DIR"));
  json = public_original();
  json["mm_hidden_size"] = 1152;
  EXPECT_THAT(refusal(json), HasSubstr("is it the right tower?"));
  json = public_original();
  json["image_aspect_ratio"] = "highres";
  EXPECT_THAT(refusal(json), HasSubstr("\"highres\""));
}

TEST(Config, OtherFoldersAreNamedForWhatTheyAre) {
  EXPECT_THAT(refusal({{"model_type", "llama"}}), HasSubstr("this is no LLaVA model"));
  const TemporaryFolder folder;
  folder.write("config.json", R"({"model_type": "bert"})");
  EXPECT_THAT(error_of(Fault::data, [&] { model::read_llama_config(folder.path()); }),
              HasSubstr("\"bert\""));
}

TEST(Config, BareClipMayHideItsVisionPart) {
  const TemporaryFolder folder;
  folder.write("config.json", R"({"model_type": "clip", "vision_config": {"hidden_size": 1024,
    "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
    "image_size": 336, "patch_size": 14}})");
  EXPECT_EQ(model::read_clip_config(folder.path()).side(), 24);
}

class NamedShape : public testing::TestWithParam<std::string> {};

// What is written says all: read back, it writes the same file again.
TEST_P(NamedShape, SurvivesItsLayout) {
  const auto config = model::named_shape(GetParam());
  const bool is_original = config.layout == model::Layout::original;
  const auto write = [&](const model::LlavaConfig& what) {
    return is_original ? model::original_config(what) : model::hugging_face_config(what);
  };
  const TemporaryFolder folder;
  folder.write("preprocessor_config.json", model::preprocessor_config(config).dump());
  const auto json = write(config);
  const auto again = read(folder, json);
  EXPECT_EQ(write(again), json);
  EXPECT_EQ(again.tiling.aspect, config.tiling.aspect);
  EXPECT_EQ(again.merge.side, config.merge.side);
  EXPECT_EQ(again.merge.unpad, config.merge.unpad);
  EXPECT_EQ(again.tiling.height_first, config.tiling.height_first);
}
INSTANTIATE_TEST_SUITE_P(All, NamedShape, testing::ValuesIn(model::shape_names()),
                         [](const auto& info) {
                           auto name = info.param;
                           for (auto& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

TEST(Config, MisspeltShapeNamesItsNeighbour) {
  EXPECT_THAT(error_of(Fault::usage, [] { model::named_shape("llava-1.5-7B"); }),
              HasSubstr("did you mean \"llava-1.5-7b\""));
}

TEST(Config, UnknownKeysSurvive) {
  auto json = public_original();
  json["somebody_elses_key"] = {1, 2, 3};
  const TemporaryFolder folder;
  EXPECT_EQ(model::original_config(read(folder, json))["somebody_elses_key"], Json({1, 2, 3}));
}

// The pairs are swapped, since transformers reads (height, width): the same grids in the same
// order.
TEST(Config, OtherLayoutKeepsTheGridsAndTheirOrder) {
  const TemporaryFolder folder;
  const auto config = read(folder, public_original());
  auto json = model::hugging_face_config(config);
  EXPECT_EQ(json["image_grid_pinpoints"][0], Json({672, 336}));
  const auto there = read(folder, json);
  for (const auto& [width, height] : {std::pair{200, 200}, {1000, 300}, {300, 1000}, {640, 480}})
    EXPECT_EQ(media::best_grid(width, height, there.tiling),
              media::best_grid(width, height, config.tiling));
  EXPECT_EQ(model::original_config(there)["image_grid_pinpoints"],
            public_original()["image_grid_pinpoints"]);
}

TEST(Config, HuggingFaceRefusesWhatItsClassesCannotCompute) {
  const auto refused = [](auto change) {
    auto config = model::named_shape("llava-1.5-7b");
    change(config);
    return error_of(Fault::data, [&] { model::hugging_face_config(config); });
  };
  EXPECT_THAT(refused([](auto& config) { config.projector_type = "linear"; }),
              HasSubstr("\"linear\" projector"));
  EXPECT_THAT(refused([](auto& config) { config.feature_select = "cls"; }),
              HasSubstr("class token"));
  EXPECT_THAT(refused([](auto& config) { config.tiling.aspect = media::Aspect::anyres; }),
              HasSubstr("image_aspect_ratio"));
}

TEST(Config, OriginalRefusesProjectorsThatItsBuilderCannotMake) {
  const auto refused = [](auto change) {
    auto config = model::named_shape("llava-1.5-7b");
    change(config);
    return error_of(Fault::data, [&] { model::original_config(config); });
  };
  EXPECT_THAT(refused([](auto& config) { config.projector_bias = false; }),
              HasSubstr("projector without biases"));
  EXPECT_THAT(refused([](auto& config) { config.projector_act = "quick_gelu"; }),
              HasSubstr("activation"));
}

}  // namespace
}  // namespace llava
