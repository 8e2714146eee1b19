#include "llava/train/plan_report.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <numeric>

namespace llava::train {
namespace {

[[gnu::format(printf, 1, 2)]] std::string printed(const char* format, ...) {
  std::va_list values, again;
  va_start(values, format);
  va_copy(again, values);
  std::string text(static_cast<std::size_t>(std::vsnprintf(nullptr, 0, format, values)) + 1, '\0');
  std::vsnprintf(text.data(), text.size(), format, again);
  va_end(again);
  va_end(values);
  text.pop_back();
  return text;
}

std::string bytes_text(double bytes) {
  return bytes < 1e9 ? printed("%.0f MB", bytes / 1e6) : printed("%.1f GB", bytes / 1e9);
}

}  // namespace

Json alternatives(const PlanRequest& request) {
  struct Found {
    Json settings;
    Plan plan;
  };
  std::vector<Found> found;
  const Plan now = make_plan(request);
  const auto rows = request.train.data.per_device_train_batch_size;
  const auto accumulation = request.train.data.gradient_accumulation_steps;
  for (std::int64_t zero = 0; zero <= (request.world() > 1 ? 3 : 0); ++zero) {
    for (const char* policy : {"none", "full"}) {
      for (std::int64_t part = 1; part <= rows; part *= 2) {
        for (const bool narrow : {false, true}) {
          for (const bool offload : {false, true}) {
            if (rows % part != 0 || (offload && zero == 0)) continue;
            PlanRequest other = request;
            Json settings = Json::object();
            const auto set = [&](const char* name, auto& field, const auto& value) {
              if (field != value) settings[name] = value;
              field = value;
            };
            set("zero", other.train.sync.zero, zero);
            set("gradient_checkpointing", other.train.model.gradient_checkpointing,
                std::string(policy));
            set("per_device_train_batch_size", other.train.data.per_device_train_batch_size,
                rows / part);
            set("gradient_accumulation_steps", other.train.data.gradient_accumulation_steps,
                accumulation * part);
            if (narrow) set("optim", other.train.optimizer.optim, std::string("adamw_8bit"));
            set("zero_offload_optimizer", other.train.sync.zero_offload_optimizer, offload);
            if (settings.empty()) continue;
            if (zero == 0) other.train.sync.grad_dtype = "auto";
            const Plan plan = make_plan(other);
            if (plan.fits && (!now.fits || plan.hours < 0.98 * now.hours))
              found.push_back({settings, plan});
          }
        }
      }
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    // A change must be worth a hundredth of the time, another optimizer a tenth.
    const auto rank = [](const Found& f) {
      return f.plan.hours * (1 + 0.01 * static_cast<double>(f.settings.size()) +
                             (f.settings.contains("optim") ? 0.1 : 0));
    };
    return rank(a) < rank(b);
  });
  Json list = Json::array();
  for (std::size_t i = 0; i < std::min<std::size_t>(3, found.size()); ++i)
    list.push_back({{"settings", found[i].settings},
                    {"total", std::llround(found[i].plan.total())},
                    {"hours", found[i].plan.hours}});
  return list;
}

Json scaling(const PlanRequest& request, const std::vector<std::int64_t>& gpus) {
  constexpr std::int64_t kPerNode = 8;
  const auto& data = request.train.data;
  const auto per_gpu = data.per_device_train_batch_size * data.gradient_accumulation_steps;
  const auto global = per_gpu * request.world();
  // One GPU that waits for nobody.
  PlanRequest one = request;
  one.processes = one.plan.num_nodes = 1;
  one.train.sync = {};
  one.samples.tokens = {static_cast<std::int32_t>(
      std::accumulate(request.samples.tokens.begin(), request.samples.tokens.end(), 0.0) /
      static_cast<double>(request.samples.tokens.size()))};
  const double ideal = static_cast<double>(per_gpu) / make_plan(one).step_seconds;

  Json rows = Json::array();
  for (const auto n : gpus) {
    for (const bool same_batch : {true, false}) {
      const auto each = same_batch ? global / n : per_gpu;
      if (each < 1 || (same_batch && (global % n != 0 || each == per_gpu))) continue;
      PlanRequest other = request;
      other.processes = std::min(n, kPerNode);
      other.plan.num_nodes = std::max<std::int64_t>(1, n / kPerNode);
      auto& rows_of = other.train.data.per_device_train_batch_size;
      rows_of = std::gcd(each, rows_of);
      other.train.data.gradient_accumulation_steps = each / rows_of;
      const Plan plan = make_plan(other);
      const double speed = static_cast<double>(each) / plan.step_seconds;
      rows.push_back({{"gpus", n},
                      {"global_batch", each * n},
                      {"step_seconds", plan.step_seconds},
                      {"efficiency", speed / ideal},
                      {"exposed_seconds", plan.exposed_seconds},
                      {"imbalance", plan.imbalance}});
    }
  }
  return rows;
}

Json plan_json(const PlanRequest& request, const Plan& plan) {
  return {{"fits", plan.fits},
          {"per_gpu_bytes",
           {{"weights", std::llround(plan.weights)},
            {"gradients", std::llround(plan.gradients)},
            {"optimizer", std::llround(plan.optimizer)},
            {"activations", std::llround(plan.activations)},
            {"logits", std::llround(plan.logits)},
            {"vision", std::llround(plan.vision)},
            {"buffers", std::llround(plan.buffers)},
            {"total", std::llround(plan.total())}}},
          {"gradient_bytes_at_most", std::llround(plan.most_gradients)},
          {"steps", plan.steps},
          {"tokens", std::llround(plan.tokens)},
          {"flops", plan.flops},
          {"hours", plan.hours},
          {"disk_bytes", std::llround(plan.disk_bytes)},
          {"alternatives", alternatives(request)},
          {"host_bytes", std::llround(plan.host_bytes)},
          {"step_seconds", plan.step_seconds},
          {"communication_bytes_per_step", std::llround(plan.step_bytes)},
          {"exposed_seconds_per_step", plan.exposed_seconds},
          {"micro_batch_tokens", std::llround(plan.micro_tokens)},
          {"imbalance", plan.imbalance},
          {"padding_of_reference", plan.padded},
          {"scaling", scaling(request, {8, 64, 1024})}};
}

namespace {

std::string alternatives_text(const PlanRequest& request, const Plan& plan) {
  const Json others = alternatives(request);
  if (others.empty())
    return plan.fits ? ""
                     : "no change of ZeRO stage, recomputation, micro-batch or optimizer makes it "
                       "fit: take more or larger GPUs, or --lora_enable\n";
  std::string text = plan.fits ? "faster, and fits as well:\n" : "what would fit:\n";
  for (const auto& other : others) {
    text += printed("  %s, %.1f hours:", bytes_text(other["total"].get<double>()).c_str(),
                    other["hours"].get<double>());
    for (const auto& [name, value] : other["settings"].items())
      text += " --" + name + " " + (value.is_string() ? value.get<std::string>() : value.dump());
    text += "\n";
  }
  return text;
}

std::string scaling_text(const PlanRequest& request) {
  std::string text =
      "on other numbers of GPUs (8 a machine):\n"
      "   GPUs  global batch  step s  efficiency  slowest/mean\n";
  for (const auto& row : scaling(request, {8, 64, 1024}))
    text += printed("  %5lld  %12lld  %6.2f  %8.0f %%  %12.2f\n",
                    static_cast<long long>(row["gpus"].get<std::int64_t>()),
                    static_cast<long long>(row["global_batch"].get<std::int64_t>()),
                    row["step_seconds"].get<double>(), 100 * row["efficiency"].get<double>(),
                    row["imbalance"].get<double>());
  const auto& plan = request.plan;
  return text +
         printed(
             "assumed: %s at %.0f %% of its dense peak, %.0f GB/s to GPUs of the same machine, "
             "%.0f GB/s a GPU\n  between machines (%.0f %% of it reached), two thirds of a step "
             "hide communication,\n  %.0f %% stragglers, kernels %.0f %% slower beside a "
             "collective, CUDA and NCCL take %s\n",
             plan.gpu.c_str(), 100 * plan.efficiency, plan.link_speed, plan.network_speed,
             100 * kNetworkShare, 100 * kStragglers, 100 * kContention,
             bytes_text(kContextBytes).c_str());
}

}  // namespace

std::string plan_text(const PlanRequest& request, const Plan& plan) {
  const auto row = [](const char* name, double bytes) {
    return printed("  %-12s %10s\n", name, bytes_text(bytes).c_str());
  };
  std::string text = printed("each of %lld GPUs, ZeRO %lld, gradient_checkpointing %s:\n",
                             static_cast<long long>(request.world()),
                             static_cast<long long>(request.train.sync.zero),
                             request.train.model.gradient_checkpointing.c_str());
  text += row("weights", plan.weights) + row("gradients", plan.gradients) +
          row("optimizer", plan.optimizer) + row("activations", plan.activations) +
          row("logits", plan.logits) + row("vision", plan.vision) + row("buffers", plan.buffers) +
          row("total", plan.total());
  if (plan.gradients < plan.most_gradients)
    text += "  (the fullest moment of a step; gradients grow to " +
            bytes_text(plan.most_gradients) + " while activations and logits go)\n";
  text += printed("%s in %s; the largest micro-batch has %.0f tokens\n",
                  plan.fits ? "fits" : "DOES NOT FIT", request.plan.gpu_memory.c_str(),
                  plan.micro_tokens);
  text += printed("%lld steps, %.3g tokens, %.3g FLOPs, %.1f hours, %s on disk\n",
                  static_cast<long long>(plan.steps), plan.tokens, plan.flops, plan.hours,
                  bytes_text(plan.disk_bytes).c_str());
  text += printed(
      "a step: %.2f s, %s sent by each GPU, of which %.2f s are not hidden; slowest "
      "rank %.2f x the mean\n",
      plan.step_seconds, bytes_text(plan.step_bytes).c_str(), plan.exposed_seconds, plan.imbalance);
  if (plan.host_bytes > 0)
    text += bytes_text(plan.host_bytes) + " of main memory for each GPU's optimizer states\n";
  if (plan.padded > 1.02)
    text += printed("no padding: the reference's batches would compute %.2f x the tokens\n",
                    plan.padded);
  return text + alternatives_text(request, plan) + scaling_text(request);
}

}  // namespace llava::train
