// What must be the same where a run goes on, and what must be for it to go on bit for bit.
#pragma once

#include "llava/train/config.h"
#include "llava/train/flops.h"

namespace llava::train {

/// All settings, seed and dtype included: what config.json holds.
Json effective_settings(const TrainConfig& config, const Compute& compute);

/// What the last bits depend on besides the settings.
Json environment(const TrainConfig& config, const Compute& compute);

/// What has to be known of the model before its weights are shared out among ranks.
struct ModelFacts {
  Learning learning;
  std::uint32_t fingerprint = 0;  // of what is frozen: tells two base models apart
};
ModelFacts facts_of(const model::Llava& model);

/// Settings, data, frozen weights, global batch and environment of a run.
Json run_identity(const TrainConfig& config, const Compute& compute, const ModelFacts& facts,
                  std::uint64_t data_fingerprint);

/// Throws Error(usage) naming what differs, unless a run `now` may go on from `before`; warns of
/// what keeps it from doing so bit for bit. `what` names the checkpoint.
void expect_same_run(const Json& before, const Json& now, const std::string& what);

}  // namespace llava::train
