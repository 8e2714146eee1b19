#include "llava/train/measured.h"

#include "llava/nn/device.h"
#include "llava/train/flops.h"
#include "llava/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <sstream>

namespace llava::train {

Measured measure_steps(const PlanRequest& request, const Compute& compute, std::int64_t steps) {
  PlanRequest one = request;
  one.processes = one.plan.num_nodes = 1;
  one.train.sync = {};
  if (compute.device.is_cpu()) one.plan.gpu = "cpu";
  const Plan plan = make_plan(one);

  const TrainConfig& config = one.train;
  auto start = load_model(config.model, compute);
  auto groups = choose_stage(start.model, config.stage, config.schedule.learning_rate,
                             config.optimizer.weight_decay, compute.seed);
  settle_layout(start);
  auto data = open_data(config.data, config.model, start, template_name(config), compute);
  const dist::ProcessGroup group;
  const auto sync = dist::alone();
  Optimizer optimizer(std::move(groups), config.optimizer);
  Trainer trainer(config, compute,
                  {start.model, facts_of(start.model), optimizer, data, *sync, group});

  std::vector<double> seconds;
  double flops = 0;
  trainer.step().figures.cpu();  // kernels are chosen, memory is taken
  const auto tokens_before = trainer.progress().tokens;
  for (std::int64_t i = 0; i < steps; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const StepReport report = trainer.step();
    report.figures.cpu();  // waits for the device
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    flops += report.flops;
  }
  Measured measured;
  measured.steps = steps;
  const double all = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
  measured.step_seconds = seconds[static_cast<std::size_t>(steps / 2)];
  measured.tokens_per_second = static_cast<double>(trainer.progress().tokens - tokens_before) / all;
  measured.peak_bytes = static_cast<double>(nn::peak_memory_bytes(compute.device));
  measured.hours = measured.step_seconds * static_cast<double>(plan.steps) / 3600;
  if (const auto peak = peak_flops(compute.device, compute.dtype))
    measured.efficiency = flops / all / *peak;
  measured.planned_seconds = plan.step_seconds;
  measured.planned_bytes = plan.total();
  return measured;
}

Json measured_json(const Measured& measured) {
  return {{"steps", measured.steps},
          {"step_seconds", measured.step_seconds},
          {"tokens_per_second", measured.tokens_per_second},
          {"peak_bytes", measured.peak_bytes},
          {"hours", measured.hours},
          {"efficiency", measured.efficiency},
          {"planned_step_seconds", measured.planned_seconds},
          {"planned_bytes", measured.planned_bytes}};
}

std::string measured_text(const Measured& measured) {
  std::ostringstream text;
  text.precision(3);
  text << "measured, " << measured.steps
       << " steps alone on one device here: " << measured.step_seconds << " s a step (planned "
       << measured.planned_seconds << "), " << measured.tokens_per_second << " tokens/s, "
       << measured.peak_bytes / 1e9 << " GB at most (planned " << measured.planned_bytes / 1e9
       << "), " << measured.hours << " hours of such steps";
  if (measured.efficiency > 0)
    text << "; " << 100 * measured.efficiency << " % of the device's peak: --efficiency "
         << measured.efficiency << " plans with that";
  text << "\n";
  return text.str();
}

}  // namespace llava::train
