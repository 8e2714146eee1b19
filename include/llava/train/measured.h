// A few real steps of a planned run, on one device of this machine: what the planner's figures are
// worth before a long run begins.
#pragma once

#include "llava/train/planner.h"

namespace llava::train {

struct Measured {
  std::int64_t steps = 0;   // timed ones
  double step_seconds = 0;  // median
  double tokens_per_second = 0;
  double peak_bytes = 0;  // of the device; on the CPU of this process
  double hours = 0;       // of the whole run on this device alone
  double efficiency = 0;  // share of the device's peak; 0 where that is not known
  double planned_seconds = 0, planned_bytes = 0;  // of the same run on this device alone
};

/// Makes one step and then `steps` timed ones, alone on `compute.device`, of the run that `request`
/// plans, with its accumulation cut to one device's. Writes nothing.  Throws as training does.
Measured measure_steps(const PlanRequest& request, const Compute& compute, std::int64_t steps);

Json measured_json(const Measured& measured);
std::string measured_text(const Measured& measured);

}  // namespace llava::train
