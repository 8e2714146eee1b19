#include "llava/train/schedule.h"

#include "llava/base/config.h"

#include <cmath>
#include <numbers>

namespace llava::train {

void check(const ScheduleConfig& config) {
  const std::vector<std::string> types{"cosine", "linear", "constant", "constant_with_warmup"};
  expect(std::find(types.begin(), types.end(), config.lr_scheduler_type) != types.end(),
         Fault::usage, "--lr_scheduler_type: there is no schedule \"", config.lr_scheduler_type,
         "\"", suggestion(config.lr_scheduler_type, types),
         "; take cosine, linear, constant or constant_with_warmup");
  expect(config.learning_rate >= 0, Fault::usage, "--learning_rate: ", config.learning_rate,
         " is negative");
  expect(config.warmup_ratio >= 0 && config.warmup_ratio <= 1, Fault::usage,
         "--warmup_ratio: expected a share from 0 to 1, found ", config.warmup_ratio);
  expect(config.max_steps > 0 || config.num_train_epochs > 0, Fault::usage,
         "--num_train_epochs: ", config.num_train_epochs,
         " trains nothing; give a positive number, or --max_steps");
}

std::int64_t total_steps(const ScheduleConfig& config, std::int64_t steps_per_epoch) {
  if (config.max_steps > 0) return config.max_steps;
  const double steps = config.num_train_epochs * static_cast<double>(steps_per_epoch);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(steps)));
}

double rate_factor(const ScheduleConfig& config, std::int64_t step, std::int64_t total) {
  if (config.lr_scheduler_type == "constant") return 1;
  const auto warmup =
      config.warmup_steps > 0
          ? config.warmup_steps
          : static_cast<std::int64_t>(std::ceil(config.warmup_ratio * static_cast<double>(total)));
  if (step < warmup) return static_cast<double>(step) / static_cast<double>(warmup);
  if (config.lr_scheduler_type == "constant_with_warmup") return 1;
  const double progress = static_cast<double>(step - warmup) /
                          static_cast<double>(std::max<std::int64_t>(1, total - warmup));
  if (config.lr_scheduler_type == "linear") return std::max(0.0, 1 - progress);
  return std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

}  // namespace llava::train
