#include "llava/train/reference_flags.h"

#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>

namespace llava::train {
namespace {

using support::error_of;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t kSeed = 42;

std::string refusal(const ReferenceFlags& flags, TrainConfig config = {}) {
  return error_of(Fault::usage, [&] { apply(flags, kSeed, config); });
}

TEST(ReferenceFlags, DeepspeedsFileNamesTheStage) {
  const support::TemporaryFolder folder;
  const auto file = folder.write("zero3_offload.json", R"({"bf16": {"enabled": "auto"},
      "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},
      "offload_param": {"device": "cpu"}}})");
  TrainConfig config;
  const auto lines = apply({.deepspeed = file}, kSeed, config);
  EXPECT_EQ(config.sync.zero, 3);
  EXPECT_TRUE(config.sync.zero_offload_optimizer);
  EXPECT_THAT(lines, ElementsAre(HasSubstr("weights stay on the device")));

  TrainConfig other;
  other.sync.zero = 2;
  EXPECT_THAT(refusal({.deepspeed = file}, other), HasSubstr("asks for ZeRO 3 and --zero for 2"));
  const auto odd = folder.write("odd.json", R"({"zero_optimization": {"stage": "three"}})");
  EXPECT_THAT(error_of(Fault::data, [&] { apply({.deepspeed = odd}, kSeed, config); }),
              HasSubstr("\"stage\" is \"three\""));
}

TEST(ReferenceFlags, TunablePartsBecomeTune) {
  TrainConfig config;
  apply({.mm_tunable_parts = "mm_vision_tower,mm_language_model"}, kSeed, config);
  EXPECT_EQ(config.stage.tune, "vision=full,projector=none,llm=full");
  EXPECT_THAT(refusal({.mm_tunable_parts = "mm_mlp_adaptor"}), HasSubstr("\"mm_mlp_adapter\""));
  EXPECT_THAT(refusal({.mm_tunable_parts = "mm_mlp_adapter"}, config), HasSubstr("give one"));
}

TEST(ReferenceFlags, FreezingAndUnfreezingBecomeTune) {
  TrainConfig config;
  const auto lines =
      apply({.freeze_backbone = true, .unfreeze_mm_vision_tower = true}, kSeed, config);
  EXPECT_EQ(config.stage.tune, "llm=none,vision=full");
  EXPECT_EQ(lines.size(), 2u);
  EXPECT_THAT(refusal({.freeze_mm_mlp_adapter = true},
                      [] {
                        TrainConfig wants_it;
                        wants_it.stage.tune = "projector=full";
                        return wants_it;
                      }()),
              HasSubstr("--tune says projector=full"));
}

TEST(ReferenceFlags, OtherNamesOfWhatThereIs) {
  TrainConfig config;
  config.optimizer.optim = "adamw_hf";
  config.metrics.report_to = "wandb";
  config.checkpoint.resume_from_checkpoint = "True";
  const auto lines = apply({.group_by_length = true, .ddp_timeout = 60}, kSeed, config);
  EXPECT_EQ(config.optimizer.optim, "adamw_torch_fused");
  EXPECT_EQ(config.metrics.report_to, "tensorboard");
  EXPECT_EQ(config.checkpoint.resume_from_checkpoint, "last");
  EXPECT_TRUE(config.data.group_by_modality_length);
  EXPECT_EQ(config.group.dist_timeout, 60);
  EXPECT_EQ(lines.size(), 3u);
}

TEST(ReferenceFlags, SilentWhereAllIsAsAskedAndRefusedWhereItCannotBe) {
  TrainConfig config;
  EXPECT_THAT(apply({.lora_bias = "none",
                     .logging_strategy = "steps",
                     .lazy_preprocess = true,
                     .is_multimodal = true,
                     .mm_use_im_patch_token = false,
                     .remove_unused_columns = false,
                     .do_train = true,
                     .data_seed = kSeed},
                    kSeed, config),
              IsEmpty());
  EXPECT_THAT(apply({.tf32 = true, .disable_tqdm = true}, kSeed, config),
              ElementsAre(HasSubstr("--tf32"), HasSubstr("--disable_tqdm")));
  EXPECT_THAT(refusal({.lora_bias = "all"}), HasSubstr("--lora_bias"));
  EXPECT_THAT(refusal({.mm_use_im_patch_token = true}), HasSubstr("im_patch"));
  EXPECT_THAT(refusal({.data_seed = 7}), HasSubstr("--seed, which is 42"));
  EXPECT_THAT(refusal({.attn_implementation = "flash_attn"}), HasSubstr("flash_attention_2"));
}

}  // namespace
}  // namespace llava::train
