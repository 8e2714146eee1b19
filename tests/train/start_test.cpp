#include "llava/train/start.h"

#include "llava/weights/safetensors.h"
#include "support/expect_error.h"
#include "tiny_run.h"

#include <gtest/gtest.h>

namespace llava::train {
namespace {

using support::error_of;
using test::TinyWorld;
using ::testing::AllOf;
using ::testing::HasSubstr;

class StartTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    world_ = std::make_unique<TinyWorld>();
    write_parents();
  }
  static void TearDownTestSuite() { world_.reset(); }

  /// Folders "clip" and "llm" with the parts of the world's model.
  static void write_parents() {
    auto whole = model::load_pretrained(world_->model()).model;
    const Json json = read_json(world_->model() + "/config.json");
    Json vision = json["vision_config"], text = json["text_config"];
    vision["model_type"] = "clip_vision_model";
    text["model_type"] = "llama";
    text["architectures"] = {"LlamaForCausalLM"};
    world_->folder().write("clip/config.json", vision.dump());
    world_->folder().write("llm/config.json", text.dump());
    for (const char* name : {"tokenizer.model", "tokenizer_config.json", "added_tokens.json",
                             "special_tokens_map.json"})
      world_->folder().write(std::string("llm/") + name, read_file(world_->model() + "/" + name));
    weights::StateDict clip, llm;
    for (const auto& item : whole->named_parameters()) {
      const std::string& name = item.key();
      if (name.starts_with("vision."))
        clip.add("vision_model." + name.substr(7), item.value().detach());
      if (name.starts_with("llama.")) llm.add("model." + name.substr(6), item.value().detach());
      if (name.starts_with("lm_head")) llm.add(name, item.value().detach());
    }
    weights::save_safetensors(*world_ / "clip/model.safetensors", clip);
    weights::save_safetensors(*world_ / "llm/model.safetensors", llm);
  }

  static ModelSource source() { return test::settings(*world_).model; }
  static model::Pretrained load(const std::function<void(ModelSource&)>& change) {
    auto wanted = source();
    change(wanted);
    return load_model(wanted, {});
  }

  static std::unique_ptr<TinyWorld> world_;
};
std::unique_ptr<TinyWorld> StartTest::world_;

TEST_F(StartTest, WholeModelComesAsItIs) {
  const auto start = load([](auto&) {});
  EXPECT_EQ(start.model->config.projector_type, "mlp2x_gelu");
  EXPECT_EQ(start.model->config.tiling.aspect, media::Aspect::pad);
  EXPECT_EQ(start.model->llama->recompute, nn::Recompute::none);
}

TEST_F(StartTest, TowerAndLlmAreJoinedByANewProjector) {
  const auto join = [&](std::uint64_t seed) {
    auto wanted = source();
    wanted.model_name_or_path = *world_ / "llm";
    wanted.vision_tower = *world_ / "clip";
    wanted.mm_projector_type = "linear";
    wanted.mm_vision_select_layer = -1;
    wanted.image_aspect_ratio = "square";
    return load_model(wanted, {.seed = seed}).model;
  };
  const auto joined = join(1), again = join(1), other = join(2);
  EXPECT_EQ(joined->config.projector_type, "linear");
  EXPECT_EQ(joined->config.feature_layers, std::vector<std::int64_t>{-1});
  EXPECT_EQ(joined->config.tiling.aspect, media::Aspect::square);
  EXPECT_EQ(joined->config.tiling.tile, 28);
  const auto whole = model::load_pretrained(world_->model()).model->named_parameters();
  for (const auto& item : joined->named_parameters()) {
    if (item.key().starts_with("projector.")) {
      EXPECT_TRUE(torch::equal(item.value(), again->named_parameters()[item.key()]));
      EXPECT_FALSE(torch::equal(item.value(), other->named_parameters()[item.key()]));
    } else {
      EXPECT_TRUE(torch::equal(item.value(), whole[item.key()])) << item.key();
    }
  }
}

TEST_F(StartTest, LlmAloneNeedsATower) {
  EXPECT_THAT(error_of(Fault::usage,
                       [&] { load([&](auto& s) { s.model_name_or_path = *world_ / "llm"; }); }),
              HasSubstr("--vision_tower"));
}

TEST_F(StartTest, SettingsThatTouchNoWeightReplaceTheModels) {
  const auto config = load([](auto& s) {
                        s.mm_vision_select_layer = -1;
                        s.mm_vision_select_feature = "cls_patch";
                        s.image_aspect_ratio = "anyres_max_4";
                        s.image_grid_pinpoints = "[[28,56],[56,28]]";
                        s.mm_patch_merge_type = "spatial_unpad";
                        s.gradient_checkpointing = "selective";
                      }).model->config;
  EXPECT_EQ(config.feature_layers, std::vector<std::int64_t>{-1});
  EXPECT_TRUE(config.merge.class_token);
  EXPECT_EQ(config.tiling.aspect, media::Aspect::anyres);
  EXPECT_EQ(config.merge.max_tiles, 4);
  EXPECT_TRUE(config.merge.spatial && config.merge.unpad && config.has_newline);
  const auto grid = media::best_grid(28, 56, config.tiling);
  EXPECT_EQ(grid, (std::pair<std::int64_t, std::int64_t>{28, 56}));
}

TEST_F(StartTest, ModelThatMergesWithANewlineGetsOne) {
  const auto wants_unpad = [](auto& s) {
    s.image_aspect_ratio = "anyres";
    s.image_grid_pinpoints = "[[28,56],[56,28]]";
    s.mm_patch_merge_type = "spatial_unpad";
  };
  const auto model = load(wants_unpad).model;
  ASSERT_TRUE(model->image_newline.defined());
  EXPECT_TRUE(model->named_parameters().contains("image_newline"));
  EXPECT_TRUE(torch::equal(model->image_newline, load(wants_unpad).model->image_newline));
  EXPECT_NEAR(model->image_newline.norm().item<float>(), 1, 0.7);  // 16 values of 1/sqrt(16)
}

TEST_F(StartTest, SettingsThatContradictTheWeightsAreRefused) {
  EXPECT_THAT(
      error_of(Fault::usage, [&] { load([](auto& s) { s.mm_projector_type = "linear"; }); }),
      AllOf(HasSubstr("--mm_projector_type is linear"), HasSubstr("has mlp2x_gelu")));
  EXPECT_THAT(error_of(Fault::usage, [&] { load([](auto& s) { s.mm_use_im_start_end = true; }); }),
              HasSubstr("--mm_use_im_start_end"));
  EXPECT_THAT(
      error_of(Fault::usage, [&] { load([](auto& s) { s.image_aspect_ratio = "anyres"; }); }),
      HasSubstr("--image_grid_pinpoints"));
}

/// What cannot be saved in a layout is found out before training, not after it.
TEST_F(StartTest, ModelThatHuggingFaceCannotExpressWillBeSavedInTheOriginalLayout) {
  EXPECT_EQ(saved_layout(load([](auto&) {})), model::Layout::hugging_face);
  auto config = test::settings(*world_, "class token");
  config.model.mm_vision_select_feature = "cls";
  config.schedule.max_steps = 1;
  test::TinyRun run(config);
  EXPECT_EQ(saved_layout(run.start), model::Layout::original);
  run.finish();  // reads it back
  EXPECT_EQ(read_json(*world_ / "class token/model/config.json")["mm_vision_select_feature"],
            "cls");
}

TEST_F(StartTest, OriginalModelIsSavedSoThatTransformersLoadsIt) {
  auto loaded = load([](auto&) {});
  model::save_pretrained(*world_ / "original", loaded.model, model::Layout::original,
                         loaded.tokenizer_folder);
  auto config = test::settings(*world_, "of the original");
  config.model.model_name_or_path = *world_ / "original";
  config.schedule.max_steps = 1;
  test::TinyRun run(config);
  EXPECT_EQ(run.start.model->config.layout, model::Layout::original);
  EXPECT_EQ(saved_layout(run.start), model::Layout::hugging_face);
  run.finish();  // reads it back
  EXPECT_EQ(read_json(*world_ / "of the original/model/config.json")["model_type"], "llava");
}

/// The reference's finetune_lora.sh starts from an LLM, a tower and Stage 1's projector.
TEST_F(StartTest, AdapterOverATowerAndAnLlmRemembersBoth) {
  auto config = test::settings(*world_, "lora of parts");
  config.model.model_name_or_path = *world_ / "llm";
  config.model.vision_tower = *world_ / "clip";
  config.stage.lora_enable = true;
  config.stage.lora_r = 4;
  config.schedule.max_steps = 1;
  test::TinyRun run(config);
  run.finish();  // reads it back with nothing but the folder's name
  const auto folder = *world_ / "lora of parts/model";
  EXPECT_EQ(read_json(folder + "/config.json")["mm_vision_tower"], *world_ / "clip");
  EXPECT_EQ(read_json(folder + "/config.json")["unfreeze_mm_vision_tower"], false);
  EXPECT_EQ(read_json(folder + "/adapter_config.json")["base_model_name_or_path"], *world_ / "llm");
}

TEST_F(StartTest, ProjectorOfAnotherWidthIsRefusedNamingTheTensor) {
  weights::StateDict wrong;
  wrong.add("model.mm_projector.0.weight", torch::zeros({8, 16}));
  wrong.add("model.mm_projector.0.bias", torch::zeros({8}));
  wrong.add("model.mm_projector.2.weight", torch::zeros({8, 8}));
  wrong.add("model.mm_projector.2.bias", torch::zeros({8}));
  const auto path = *world_ / "mm_projector.safetensors";
  weights::save_safetensors(path, wrong);
  EXPECT_THAT(
      error_of(Fault::data, [&] { load([&](auto& s) { s.pretrain_mm_mlp_adapter = path; }); }),
      HasSubstr("0.weight"));
  EXPECT_THAT(
      error_of(Fault::data,
               [&] { load([&](auto& s) { s.pretrain_mm_mlp_adapter = world_->images(); }); }),
      HasSubstr("holds no mm_projector.bin"));
}

TEST_F(StartTest, RecomputationIsSetByName) {
  for (const auto& [word, kind] :
       {std::pair{"none", nn::Recompute::none}, std::pair{"selective", nn::Recompute::selective},
        std::pair{"full", nn::Recompute::full}, std::pair{"True", nn::Recompute::full}}) {
    const auto start = load([&, word = word](auto& s) { s.gradient_checkpointing = word; });
    EXPECT_EQ(start.model->llama->recompute, kind);
    EXPECT_EQ(start.model->vision->recompute, kind);
  }
}

/// Ids of the samples of the first epoch's steps.
std::vector<std::string> order_of(const TrainConfig& config) {
  auto start = load_model(config.model, {});
  auto data = open_data(config.data, config.model, start, template_name(config), {});
  std::vector<std::string> ids;
  for (std::int64_t i = 0; i < data.train->sampler().steps_per_epoch(); ++i)
    for (const auto& batch : data.train->next().micro_batches)
      ids.insert(ids.end(), batch.example_ids.begin(), batch.example_ids.end());
  return ids;
}

TEST_F(StartTest, OrderOfSamplesFollowsItsSettings) {
  auto config = test::settings(*world_);
  config.data.sampler = "reference";
  config.data.shuffle = false;
  const auto in_file = order_of(config);
  ASSERT_EQ(in_file.size(), 16u);
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(in_file[i], "sample-" + std::to_string(i));
  config.data.shuffle = true;
  const auto shuffled = order_of(config);
  EXPECT_NE(shuffled, in_file);
  EXPECT_EQ(shuffled, order_of(config));
  config.data.group_by_modality_length = true;
  EXPECT_NE(order_of(config), shuffled);
  config.data.dataloader_num_workers = 3;
  const auto grouped = order_of(config);
  config.data.dataloader_num_workers = 0;
  EXPECT_EQ(order_of(config), grouped);  // threads do not matter
}

TEST_F(StartTest, TemplateIsTheRunsOrTheModels) {
  const auto start = load([](auto&) {});
  EXPECT_EQ(text::template_name(make_encoder(start, "plain").chat()), "plain");
  EXPECT_EQ(
      text::template_name(make_encoder(start, "").chat()),
      start.model->config.conversation.empty() ? "vicuna_v1" : start.model->config.conversation);
}

TEST_F(StartTest, ValidationSetIsAFileOrHeldOut) {
  auto config = test::settings(*world_);
  const auto start = load([](auto&) {});
  const auto open = [&] { return open_data(config.data, config.model, start, "v1", {}); };
  EXPECT_FALSE(open().validation);
  config.data.val_size = 0.25;
  EXPECT_EQ(open().held_out->size(), 4);
  EXPECT_EQ(open().records->size(), 12);
  config.data.val_size = 0;
  world_->write_set("validation.json", 5);
  config.data.eval_data_path = *world_ / "validation.json";
  EXPECT_EQ(open().held_out->size(), 5);
  EXPECT_EQ(open().records->size(), 16);
}

TEST_F(StartTest, EmptySetIsADataError) {
  auto config = test::settings(*world_);
  config.data.data_path = world_->folder().write("empty.json", "[]");
  const auto start = load([](auto&) {});
  EXPECT_THAT(error_of(Fault::data, [&] { open_data(config.data, config.model, start, "v1", {}); }),
              HasSubstr("empty.json"));
}

}  // namespace
}  // namespace llava::train
