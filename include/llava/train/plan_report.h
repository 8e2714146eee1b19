// Plans for people and programs: one in words or JSON, what would fit instead, and how the run
// scales.
#pragma once

#include "llava/train/planner.h"

namespace llava::train {

/// Settings that would fit, the least costly in time first, as {"settings": {..}, "total",
/// "hours"}.
Json alternatives(const PlanRequest& request);

/// The same run on other numbers of GPUs: with the same global batch, and with the same batch a
/// GPU. {"gpus", "global_batch", "step_seconds", "efficiency", "exposed_seconds", "imbalance"}.
Json scaling(const PlanRequest& request, const std::vector<std::int64_t>& gpus);

/// {"fits", "per_gpu_bytes", "steps", "tokens", "flops", "hours", "disk_bytes", "alternatives",
/// ..}.
Json plan_json(const PlanRequest& request, const Plan& plan);

/// For people, assumptions included.
std::string plan_text(const PlanRequest& request, const Plan& plan);

}  // namespace llava::train
