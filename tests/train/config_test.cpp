#include "llava/train/config.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

namespace llava::train {
namespace {

using support::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// A config that check() accepts.
TrainConfig complete() {
  TrainConfig config;
  config.model.model_name_or_path = "model";
  config.data.data_path = "set.json";
  config.loop.output_dir = "out";
  return config;
}

std::string refusal(const std::function<void(TrainConfig&)>& change) {
  auto config = complete();
  change(config);
  return error_of(Fault::usage, [&] { check(config); });
}

TEST(TrainConfig, KnowsTheNamesPeopleKnow) {
  const Json fields = config_json(TrainConfig{});
  for (const char* name : {"model_name_or_path",
                           "vision_tower",
                           "pretrain_mm_mlp_adapter",
                           "lora_weight_path",
                           "data_path",
                           "image_folder",
                           "output_dir",
                           "version",
                           "tune",
                           "tune_mm_mlp_adapter",
                           "lora_enable",
                           "lora_r",
                           "lora_alpha",
                           "lora_dropout",
                           "mm_projector_type",
                           "mm_vision_select_layer",
                           "mm_vision_select_feature",
                           "mm_projector_lr",
                           "mm_vision_tower_lr",
                           "image_aspect_ratio",
                           "image_grid_pinpoints",
                           "mm_patch_merge_type",
                           "group_by_modality_length",
                           "per_device_train_batch_size",
                           "per_device_eval_batch_size",
                           "gradient_accumulation_steps",
                           "num_train_epochs",
                           "max_steps",
                           "learning_rate",
                           "weight_decay",
                           "warmup_ratio",
                           "warmup_steps",
                           "lr_scheduler_type",
                           "max_grad_norm",
                           "adam_beta1",
                           "adam_beta2",
                           "adam_epsilon",
                           "model_max_length",
                           "bf16",
                           "logging_steps",
                           "save_steps",
                           "save_strategy",
                           "save_total_limit",
                           "eval_strategy",
                           "eval_steps",
                           "val_size",
                           "dataloader_num_workers",
                           "optim",
                           "gradient_checkpointing",
                           "tokens_per_micro_batch",
                           "loss_reduction",
                           "sampler",
                           "shuffle",
                           "on_bad_image",
                           "on_overlength",
                           "on_nan",
                           "resume_from_checkpoint",
                           "report_to",
                           "run_name",
                           "zero",
                           "nproc_per_node",
                           "dist_backend",
                           "dist_timeout"})
    EXPECT_TRUE(fields.contains(name)) << name;
}

TEST(TrainConfig, ComesBackFromItsJson) {
  auto config = complete();
  config.schedule.learning_rate = 1.0 / 3;
  config.stage.mm_projector_lr = 2e-5;
  config.model.mm_vision_select_layer = -2;
  const Json json = config_json(config);
  EXPECT_EQ(config_json(read_config<TrainConfig>(json, "test")), json);
}

TEST(TrainConfig, NamesTheNearestKnownSetting) {
  EXPECT_THAT(error_of(Fault::usage,
                       [] {
                         read_config<TrainConfig>(Json{{"learning_rte", 1}}, "mine.json");
                       }),
              AllOf(HasSubstr("mine.json"), HasSubstr("did you mean \"learning_rate\"?")));
}

/// The published recipes: they parse, make sense, say where they are from, name a template that
/// there is, and hold nothing that is the default anyway.
TEST(Recipes, AreWhatTheReadmeSaysOfThem) {
  const Json defaults = config_json(TrainConfig{});
  int count = 0;
  for (const std::string folder : {"v1", "v1.5", "next"}) {
    for (const auto& entry :
         std::filesystem::directory_iterator(LLAVA_GOLDEN "/../../../configs/" + folder)) {
      const std::string path = entry.path().string();
      Json json = read_json(path);
      auto config = read_config<TrainConfig>(json, path);
      config.model.model_name_or_path = config.data.data_path = config.loop.output_dir = "x";
      EXPECT_NO_THROW(check(config)) << path;
      EXPECT_GT(config.source.size(), 20u) << path;
      if (!template_name(config).empty()) {
        EXPECT_NO_THROW(text::find_template(template_name(config))) << path;
      }
      for (const auto& [key, value] : json.items())
        EXPECT_NE(value, defaults[key]) << path << ": " << key << " is the default";
      ++count;
    }
  }
  EXPECT_GE(count, 20);
}

TEST(Recipes, OfLlava15AreThePublishedNumbers) {
  const auto recipe = [](const std::string& name) {
    const auto path = LLAVA_GOLDEN "/../../../configs/v1.5/" + name + ".json";
    return read_config<TrainConfig>(read_json(path), path);
  };
  const auto one = recipe("stage1-7b"), two = recipe("stage2-13b"), lora = recipe("lora-7b");
  EXPECT_TRUE(read_tune(one.stage).is_projector_only());
  EXPECT_EQ(one.schedule.learning_rate, 1e-3);
  EXPECT_EQ(8 * one.data.per_device_train_batch_size, 256);
  EXPECT_EQ(total_steps(one.schedule, (558128 + 255) / 256), 2181);
  EXPECT_EQ(*one.model.image_aspect_ratio, "square");
  EXPECT_EQ(two.schedule.learning_rate, 2e-5);
  EXPECT_EQ(total_steps(two.schedule, (665298 + 127) / 128), 5198);
  EXPECT_TRUE(two.data.group_by_modality_length);
  EXPECT_EQ(two.optimizer.max_grad_norm, 0);  // DeepSpeed's file has no clipping
  EXPECT_EQ(lora.stage.lora_r, 128);
  EXPECT_EQ(lora.stage.lora_alpha, 256);
  EXPECT_EQ(*lora.stage.mm_projector_lr, 2e-5);
}

TEST(TrainConfig, NameAndTemplateFollowTheStage) {
  auto config = complete();
  EXPECT_EQ(run_name(config), "stage2");
  EXPECT_EQ(template_name(config), "");
  config.stage.tune_mm_mlp_adapter = true;
  EXPECT_EQ(run_name(config), "stage1");
  EXPECT_EQ(template_name(config), "plain");
  config.model.version = "v1";
  EXPECT_EQ(template_name(config), "v1");
  config.stage = {.lora_enable = true};
  EXPECT_EQ(run_name(config), "lora");
  config.metrics.run_name = "mine";
  EXPECT_EQ(run_name(config), "mine");
}

TEST(TrainConfig, ChangesThatMatterAreDescribed) {
  const Json before = config_json(complete());
  auto config = complete();
  config.loop.output_dir = "elsewhere";
  config.metrics.logging_steps = 99;
  config.source = "a note";
  EXPECT_EQ(describe_changes(before, config_json(config)), "");
  config.optimizer.weight_decay = 0.5;
  config.stage.mm_projector_lr = 1;
  EXPECT_EQ(describe_changes(before, config_json(config)),
            "mm_projector_lr was null and is 1.0, weight_decay was 0.0 and is 0.5");
}

TEST(TrainConfig, RefusesWhatMakesNoSense) {
  check(complete());
  EXPECT_THAT(refusal([](auto& c) { c.model.model_name_or_path = ""; }),
              HasSubstr("--model_name_or_path is missing"));
  EXPECT_THAT(refusal([](auto& c) { c.data.data_path = ""; }), HasSubstr("--data_path"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.output_dir = ""; }), HasSubstr("--output_dir"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.loss_reduction = "tokens"; }),
              HasSubstr("did you mean \"token\"?"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.on_nan = "ignore"; }), HasSubstr("--on_nan"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.eval_strategy = "always"; }),
              HasSubstr("--eval_strategy"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.eval_strategy = "steps"; }), HasSubstr("--val_size"));
  EXPECT_THAT(refusal([](auto& c) { c.loop.eval_steps = 0; }), HasSubstr("--eval_steps"));
  EXPECT_THAT(refusal([](auto& c) {
                c.loop.on_nan = "rollback";
                c.checkpoint.save_strategy = "no";
              }),
              HasSubstr("--on_nan rollback"));
  EXPECT_THAT(refusal([](auto& c) { c.model.image_aspect_ratio = "wide"; }),
              HasSubstr("--image_aspect_ratio"));
  EXPECT_THAT(refusal([](auto& c) { c.model.mm_patch_merge_type = "flatt"; }),
              HasSubstr("--mm_patch_merge_type"));
  EXPECT_THAT(refusal([](auto& c) { c.model.mm_vision_select_feature = "all"; }),
              HasSubstr("--mm_vision_select_feature"));
  EXPECT_THAT(refusal([](auto& c) { c.model.image_grid_pinpoints = "[[1,2,3]]"; }),
              HasSubstr("--image_grid_pinpoints"));
  EXPECT_THAT(refusal([](auto& c) { c.model.gradient_checkpointing = "some"; }),
              HasSubstr("--gradient_checkpointing"));
  EXPECT_THAT(refusal([](auto& c) { c.model.model_max_length = 0; }),
              HasSubstr("--model_max_length"));
  EXPECT_THAT(refusal([](auto& c) { c.data.sampler = "random"; }), HasSubstr("--sampler"));
  EXPECT_THAT(refusal([](auto& c) { c.data.on_bad_image = "zero"; }), HasSubstr("--on_bad_image"));
  EXPECT_THAT(refusal([](auto& c) { c.data.on_overlength = "cut"; }), HasSubstr("--on_overlength"));
  EXPECT_THAT(refusal([](auto& c) { c.data.per_device_train_batch_size = 0; }),
              HasSubstr("--per_device_train_batch_size"));
  EXPECT_THAT(refusal([](auto& c) { c.data.gradient_accumulation_steps = -1; }),
              HasSubstr("--gradient_accumulation_steps"));
  EXPECT_THAT(refusal([](auto& c) { c.data.dataloader_num_workers = -1; }),
              HasSubstr("--dataloader_num_workers"));
  EXPECT_THAT(refusal([](auto& c) { c.data.tokens_per_micro_batch = -1; }),
              HasSubstr("--tokens_per_micro_batch"));
  EXPECT_THAT(refusal([](auto& c) {
                c.data.val_size = 1;
                c.data.eval_data_path = "val.json";
              }),
              HasSubstr("give one"));
}

}  // namespace
}  // namespace llava::train
