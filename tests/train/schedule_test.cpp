#include "llava/train/schedule.h"

#include "llava/base/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava::train {
namespace {

using ::testing::HasSubstr;

TEST(Schedule, FirstUpdateHasRateZeroAndWarmupEndsAtThePeak) {
  ScheduleConfig config;  // cosine, 3 % of 5198 steps: LLaVA-1.5's Stage 2, warm-up 156
  EXPECT_EQ(rate_factor(config, 0, 5198), 0);
  EXPECT_DOUBLE_EQ(rate_factor(config, 78, 5198), 0.5);
  EXPECT_EQ(rate_factor(config, 156, 5198), 1);
  EXPECT_DOUBLE_EQ(rate_factor(config, 156 + (5198 - 156) / 2, 5198), 0.5);
  EXPECT_NEAR(rate_factor(config, 5198, 5198), 0, 1e-15);
}

TEST(Schedule, LinearFallsToZero) {
  ScheduleConfig config{.lr_scheduler_type = "linear", .warmup_ratio = 0, .warmup_steps = 2};
  const double want[] = {0, 0.5, 1, 0.875, 0.75};
  for (int step = 0; step < 5; ++step) EXPECT_DOUBLE_EQ(rate_factor(config, step, 10), want[step]);
  EXPECT_EQ(rate_factor(config, 10, 10), 0);
}

TEST(Schedule, ConstantIgnoresWarmupAndItsSiblingDoesNot) {
  ScheduleConfig config{.lr_scheduler_type = "constant", .warmup_steps = 4};
  EXPECT_EQ(rate_factor(config, 0, 10), 1);
  config.lr_scheduler_type = "constant_with_warmup";
  EXPECT_EQ(rate_factor(config, 1, 10), 0.25);
  EXPECT_EQ(rate_factor(config, 9, 10), 1);
}

TEST(Schedule, WarmupRatioIsRoundedUp) {
  ScheduleConfig config;  // ceil(0.03 * 2181) = 66: LLaVA-1.5's Stage 1
  EXPECT_EQ(rate_factor(config, 66, 2181), 1);
  EXPECT_LT(rate_factor(config, 65, 2181), 1);
}

TEST(Schedule, StepsComeFromEpochsUnlessGiven) {
  EXPECT_EQ(total_steps({.num_train_epochs = 1.5}, 3), 5);
  EXPECT_EQ(total_steps({.num_train_epochs = 1.5, .max_steps = 7}, 3), 7);
}

TEST(Schedule, RefusesWhatMakesNoSense) {
  const auto message = [](const ScheduleConfig& config) -> std::string {
    try {
      check(config);
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::usage);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({.lr_scheduler_type = "cosin"}), HasSubstr("did you mean \"cosine\"?"));
  EXPECT_THAT(message({.warmup_ratio = 3}), HasSubstr("--warmup_ratio"));
  EXPECT_THAT(message({.num_train_epochs = 0}), HasSubstr("--num_train_epochs"));
  EXPECT_THAT(message({.learning_rate = -1}), HasSubstr("--learning_rate"));
  EXPECT_EQ(message({}), "");
}

}  // namespace
}  // namespace llava::train
