#include "llava/train/trainer.h"

#include "eight_bit.h"
#include "llava/base/log.h"
#include "llava/nn/device.h"
#include "llava/nn/gradients.h"
#include "modality.h"
#include "random_state.h"
#include "signals.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace llava::train {
namespace {

constexpr std::int64_t kMostRollbacks = 3;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A mean, where there is something to take it of.
std::optional<double> mean(double sum, std::int64_t count) {
  if (count == 0) return std::nullopt;
  return sum / static_cast<double>(count);
}

/// The first few of a list of sample ids, for messages.
std::string listed(const std::vector<std::string>& ids) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(kShown, ids.size()); ++i) text += (i ? ", " : "") + ids[i];
  return text + (ids.size() > kShown ? ", ... (" + std::to_string(ids.size()) + " in all)" : "");
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, const Compute& compute, const TrainerParts& parts)
    : config_(config),
      compute_(compute),
      parts_(parts),
      steps_per_epoch_(parts.data.train->sampler().steps_per_epoch()),
      total_steps_(train::total_steps(config.schedule, steps_per_epoch_)) {
  identity_ = run_identity(config, compute, parts.facts, parts.data.records->fingerprint());
  parts.group.expect_same(identity_.dump(1), "the settings, data and model of a run");
  const auto token = parts.group.all_gather_text(std::to_string(::getpid()), "process numbers")[0];
  writer_.emplace(config.loop.output_dir, config.checkpoint.save_total_limit,
                  Writers{compute.rank, compute.world_size, token});
  auto& llama = *parts_.model->llama;
  llama.before_layer = [&sync = parts.sync](std::int64_t layer, const torch::Tensor& hidden) {
    sync.before_layer(layer, hidden);
  };
  llama.after_layer = [&sync = parts.sync](std::int64_t layer, const torch::Tensor& hidden) {
    sync.after_layer(layer, hidden);
  };
  parts_.model->train();
}

Trainer::~Trainer() { parts_.model->llama->before_layer = parts_.model->llama->after_layer = {}; }

StepReport Trainer::step() {
  const data::Step work = parts_.data.train->next();
  StepReport report;
  report.step = progress_.step + 1;
  for (const auto& batch : work.micro_batches)
    report.samples.insert(report.samples.end(), batch.example_ids.begin(), batch.example_ids.end());
  parts_.group.note(report.step, listed(report.samples));
  count(work);
  report.learned = step_learned_;
  warn_of_skipped(work, report.step);

  const torch::Tensor losses = forward_and_backward(work, report);  // [3]
  const torch::Tensor norm = parts_.sync.total_norm(parts_.optimizer.gradient_norm());
  const torch::Tensor skip = torch::isfinite(losses[0] + norm).logical_not().to(torch::kFloat32);
  const double factor = rate_factor(config_.schedule, progress_.step, total_steps_);
  parts_.optimizer.step(factor, norm, skip);
  parts_.optimizer.zero_grad();
  parts_.sync.publish();

  report.figures = torch::stack({losses[0], norm, skip, losses[1], losses[2]});
  report.learning_rate = factor * config_.schedule.learning_rate;
  progress_.step = report.step;
  return report;
}

/// Counts what all ranks work on in a step.
void Trainer::count(const data::Step& work) {
  const auto sums =
      parts_.group.sum(torch::tensor({work.num_learned, work.num_samples, work.num_tokens,
                                      work.losses.skipped + work.losses.dropped}),
                       "counts of a step");
  step_learned_ = sums[0].item<std::int64_t>();
  progress_.samples += sums[1].item<std::int64_t>();
  progress_.tokens += sums[2].item<std::int64_t>();
  progress_.samples_skipped += sums[3].item<std::int64_t>();
}

/// A line in the metrics for samples of this rank that --on_bad_image skip left out.
void Trainer::warn_of_skipped(const data::Step& work, std::int64_t step) {
  if (!metrics_ || work.skipped.empty()) return;
  metrics_->line("warn", step, {{"what", "skipped"}, {"samples", work.skipped}});
}

/// Gradients of a step. Returns the loss, and the sums of those of tokens of samples with pictures
/// and without, of all ranks.
torch::Tensor Trainer::forward_and_backward(const data::Step& work, StepReport& report) {
  const auto micro_steps = work.micro_batches.size();
  const bool by_token = config_.loop.loss_reduction == "token";
  // What a micro-batch's sum or mean is divided by, so that those of all ranks add up to the
  // step's.
  const auto divisor =
      static_cast<double>(by_token ? std::max<std::int64_t>(1, step_learned_)
                                   : static_cast<std::int64_t>(micro_steps) * compute_.world_size);
  torch::Tensor losses = torch::zeros({3}, torch::device(compute_.device));
  torch::Tensor learned = torch::zeros({2}, torch::kInt64);
  for (std::size_t micro = 0; micro < micro_steps; ++micro) {
    const input::Batch& batch = work.micro_batches[micro];
    report.flops += useful_flops(parts_.model->config, parts_.facts.learning, work_of(batch));
    const nn::TokenLoss loss = parts_.model->token_loss(batch.to(compute_.device));
    const auto tokens = by_token ? 1 : std::max<std::int64_t>(1, loss.count);
    const torch::Tensor part = loss.sum / (static_cast<double>(tokens) * divisor);
    {
      const nn::AddsGradientsInPlace adding;
      parts_.sync.backward(part, /*last_micro_step=*/micro + 1 == micro_steps);
    }
    const ByModality split = split_by_modality(batch, loss.each);
    losses += torch::stack({part.detach(), split.image, split.text});
    learned += torch::tensor({split.image_tokens, split.text_tokens});
  }
  learned = parts_.group.sum(learned, "learned tokens");
  report.image_tokens = learned[0].item<std::int64_t>();
  report.text_tokens = learned[1].item<std::int64_t>();
  return parts_.group.sum(losses, "the loss");
}

void Trainer::run() {
  const StopSignals signals;
  peak_flops_ = peak_flops(compute_.device, compute_.dtype);
  const double began = seconds_now();
  const Progress first = progress_;
  begin_interval();
  while (progress_.step < total_steps_) {
    pending_.push_back(step());
    const bool is_last = progress_.step == total_steps_;
    const bool logs = is_last || progress_.step % config_.metrics.logging_steps == 0;
    if (logs || compute_.device.is_cpu()) settle();  // reading figures makes a GPU wait
    if (logs) log_step();
    // As in transformers' Trainer, an epoch that max_steps cuts ends there.
    if (is_due(config_.loop.eval_strategy, config_.loop.eval_steps) ||
        (is_last && config_.loop.eval_strategy == "epoch"))
      validate();
    if (is_due(config_.checkpoint.save_strategy, config_.checkpoint.save_steps) ||
        (is_last && config_.checkpoint.save_strategy != "no"))
      save();
    const std::string signal = StopSignals::received();
    if (parts_.group.any(!signal.empty(), "whether to stop")) stop(signal);
  }
  finish_saving();
  write_end(seconds_now() - began, progress_.step - first.step, first.samples);
}

/// Returns once the last checkpoint is safe, on all ranks.
void Trainer::finish_saving() {
  writer_->wait();
  parts_.group.barrier("the last checkpoint");
}

void Trainer::stop(const std::string& signal) {
  save();
  finish_saving();
  if (metrics_) metrics_->line("event", progress_.step, {{"what", "stopped"}, {"signal", signal}});
  fail(Fault::stopped, "stopped by ", signal.empty() ? "another rank" : signal, " after step ",
       progress_.step, " of ", total_steps_, " and saved; --resume_from_checkpoint last goes on");
}

void Trainer::write_end(double seconds, std::int64_t steps, std::int64_t samples_before) {
  if (!metrics_) return;
  const auto updates =
      std::max<std::int64_t>(1, progress_.step - progress_.updates_skipped - progress_.empty_steps);
  metrics_->line(
      "end", progress_.step,
      {{"train_loss", progress_.loss_sum / static_cast<double>(updates)},
       {"train_runtime", seconds},
       {"train_steps_per_second", static_cast<double>(steps) / std::max(1e-9, seconds)},
       {"train_samples_per_second",
        static_cast<double>(progress_.samples - samples_before) / std::max(1e-9, seconds)},
       {"samples", progress_.samples},
       {"tokens", progress_.tokens}});
  metrics_->draw();
}

/// Reads the figures of the steps made since the last call, and acts on those that went wrong.
void Trainer::settle() {
  if (pending_.empty()) return;
  std::vector<torch::Tensor> figures;
  for (const auto& report : pending_) figures.push_back(report.figures);
  const auto host = torch::stack(figures).to(torch::kCPU);  // [steps, 5]
  const auto values = host.accessor<float, 2>();
  const auto reports = std::exchange(pending_, {});
  for (std::size_t i = 0; i < reports.size(); ++i) {
    const auto row = values[static_cast<std::int64_t>(i)];
    ++interval_.steps;
    interval_.flops += reports[i].flops;
    interval_.learning_rate = reports[i].learning_rate;
    interval_.grad_norm = row[1];
    interval_.loss += row[0];
    interval_.image_loss += row[3];
    interval_.text_loss += row[4];
    interval_.image_tokens += reports[i].image_tokens;
    interval_.text_tokens += reports[i].text_tokens;
    const bool is_empty = reports[i].learned == 0;
    interval_.empty_steps += is_empty;
    progress_.empty_steps += is_empty && row[2] == 0;
    if (row[2] != 0) {
      react_to_non_finite(reports[i], row[0], row[1]);
    } else {
      progress_.loss_sum += row[0];
    }
  }
}

void Trainer::react_to_non_finite(const StepReport& report, double loss, double grad_norm) {
  ++progress_.updates_skipped;
  std::ostringstream what;
  what << "step " << report.step << ": " << (std::isfinite(loss) ? "the gradient" : "the loss")
       << " is not finite (loss " << loss << ", gradient norm " << grad_norm
       << "); the update was not made; samples " << listed(report.samples);
  Json line{{"what", "non_finite"}, {"samples", report.samples}, {"policy", config_.loop.on_nan}};
  if (metrics_) metrics_->line("warn", report.step, line);
  expect(config_.loop.on_nan != "stop", Fault::non_finite, what.str(),
         "; look at them with llava data show, lower --learning_rate, or take --on_nan skip");
  log::warn(what.str());
  if (config_.loop.on_nan == "skip") return;

  finish_saving();
  const Checkpoint saved = checkpoint_from("last");
  expect(saved.step > 0 && rollbacks_<kMostRollbacks, Fault::non_finite, what.str(), saved.step> 0
             ? "; went back to the last checkpoint three times already"
             : "; there is no checkpoint to go back to yet",
         "; lower --learning_rate");
  ++rollbacks_;
  restore(saved, /*with_random=*/false);
  log::warn("weights and optimizer are back at step ", saved.step, "; going on behind step ",
            report.step);
}

void Trainer::begin_interval() {
  interval_ = {};
  interval_.began = seconds_now();
  interval_.waited = parts_.data.train->seconds_waited();
  interval_.tokens = progress_.tokens;
}

void Trainer::log_step() {
  const double seconds = seconds_now() - interval_.began;
  const auto steps = static_cast<double>(std::max<std::int64_t>(1, interval_.steps));
  StepMetrics metrics;
  metrics.step = progress_.step;
  metrics.epoch = static_cast<double>(progress_.step) / static_cast<double>(steps_per_epoch_);
  const auto with_loss = interval_.steps - interval_.empty_steps;
  metrics.loss = mean(interval_.loss, with_loss).value_or(std::nan(""));  // null in JSON
  metrics.loss_image = mean(interval_.image_loss, interval_.image_tokens);
  metrics.loss_text = mean(interval_.text_loss, interval_.text_tokens);
  metrics.learning_rate = interval_.learning_rate;
  metrics.grad_norm = interval_.grad_norm;
  metrics.tokens = progress_.tokens;
  metrics.tokens_per_second = static_cast<double>(progress_.tokens - interval_.tokens) / seconds;
  if (peak_flops_) metrics.mfu = interval_.flops / seconds / *peak_flops_;
  metrics.step_time = seconds / steps;
  metrics.data_time = (parts_.data.train->seconds_waited() - interval_.waited) / steps;
  metrics.mem_peak = nn::peak_memory_bytes(compute_.device);
  metrics.skipped = progress_.samples_skipped + progress_.updates_skipped;
  if (metrics_) metrics_->step(metrics);
  begin_interval();
}

Trainer::Validation Trainer::evaluate() {
  torch::NoGradGuard no_grad;
  auto& loader = *parts_.data.validation;
  parts_.model->eval();
  loader.seek(0);
  // Of samples with pictures, and without.
  torch::Tensor sums = torch::zeros({2}, torch::device(compute_.device));
  auto counts = torch::zeros({2}, torch::kInt64);
  for (std::int64_t i = 0; i < loader.sampler().steps_per_epoch(); ++i) {
    const data::Step work = loader.next();
    for (const auto& batch : work.micro_batches) {
      const auto loss = parts_.model->token_loss(batch.to(compute_.device));
      const ByModality split = split_by_modality(batch, loss.each);
      sums += torch::stack({split.image, split.text});
      counts += torch::tensor({split.image_tokens, split.text_tokens});
    }
  }
  parts_.model->train();
  sums = parts_.group.sum(sums, "the validation loss").cpu();
  counts = parts_.group.sum(counts, "validated tokens");
  const auto sum = [&](int i) { return static_cast<double>(sums[i].item<float>()); };
  const auto count = [&](int i) { return counts[i].item<std::int64_t>(); };
  return {mean(sum(0) + sum(1), count(0) + count(1)).value_or(0), mean(sum(0), count(0)),
          mean(sum(1), count(1))};
}

void Trainer::validate() {
  settle();
  const double began = seconds_now();
  const Validation validation = evaluate();
  log::info("validation at step ", progress_.step, ": loss ", validation.loss);
  const double seconds = seconds_now() - began;
  Json line{{"loss", validation.loss}, {"runtime", seconds}};
  if (validation.loss_image && validation.loss_text) {
    line["loss_image"] = *validation.loss_image;
    line["loss_text"] = *validation.loss_text;
  }
  if (metrics_) metrics_->line("eval", progress_.step, line);
  interval_.began += seconds;  // not the steps' time
}

bool Trainer::is_due(const std::string& strategy, std::int64_t every) const {
  if (strategy == "epoch") return progress_.step % steps_per_epoch_ == 0;
  return strategy == "steps" && progress_.step % every == 0;
}

Checkpoint Trainer::checkpoint() const {
  Checkpoint checkpoint;
  checkpoint.step = progress_.step;
  checkpoint.state = {{"progress", config_json(progress_)}, {"identity", identity_}};
  // Without ZeRO all ranks hold the same.
  if (compute_.rank == 0 || config_.sync.zero > 0) {
    for (const auto& [name, tensor] : parts_.optimizer.state())
      if (compute_.rank == 0 || name != "step") checkpoint.tensors.add(name, tensor);
  }
  for (const auto& [name, tensor] : random_states(compute_.device, compute_.rank))
    checkpoint.tensors.add(name, tensor);
  return checkpoint;
}

void Trainer::restore(const Checkpoint& checkpoint, bool with_random) {
  torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : parts_.optimizer.state())
    restore_tensor(checkpoint.tensors, name, tensor, kMomentBlock);
  parts_.optimizer.weights_from_masters();
  parts_.sync.publish();
  if (with_random) restore_random_states(checkpoint.tensors, compute_.device, compute_.rank);
}

void Trainer::save() {
  settle();
  if (saved_step_ == progress_.step) return;
  const double began = seconds_now();
  const Checkpoint now = checkpoint();
  for (const auto& [name, tensor] : now.tensors)
    expect(!tensor.is_floating_point() || std::isfinite(tensor.norm().item<double>()),
           Fault::non_finite, "step ", progress_.step, ": ", name,
           " holds numbers that are not finite; nothing was saved, the last checkpoint is good; "
           "lower --learning_rate");
  writer_->save(now, [step = now.step] { log::info("saved checkpoint-", step); });
  saved_step_ = progress_.step;
  rollbacks_ = 0;
  const double stopped = seconds_now() - began;
  if (metrics_) {
    metrics_->line("save", progress_.step,
                   {{"path", "checkpoint-" + std::to_string(now.step)}, {"stop_time", stopped}});
    metrics_->draw();
  }
  interval_.began += stopped;
}

/// The checkpoint that rank 0 chose and verified; one of step 0 where there is none.
Checkpoint Trainer::checkpoint_from(const std::string& wanted) const {
  std::string path = wanted;
  if (compute_.rank == 0) {
    if (wanted == "last") path = last_checkpoint(config_.loop.output_dir);
    if (!path.empty() && wanted != "last") read_checkpoint(path);
  }
  path = parts_.group.all_gather_text(path, "the checkpoint to go on from")[0];
  return path.empty() ? Checkpoint{} : read_checkpoint(path, /*verifies=*/false);
}

void Trainer::resume() {
  const std::string& wanted = config_.checkpoint.resume_from_checkpoint;
  const Checkpoint from = wanted.empty() ? Checkpoint{} : checkpoint_from(wanted);
  if (from.step > 0) {
    expect_same_run(from.state.at("identity"), identity_,
                    "checkpoint-" + std::to_string(from.step));
    restore(from, /*with_random=*/true);
    progress_ = read_config<Progress>(from.state.at("progress"), "progress");
    saved_step_ = progress_.step;
    parts_.data.train->seek(progress_.step);
    log::info("going on from checkpoint-", progress_.step);
  } else if (!wanted.empty()) {
    log::info("no checkpoint to go on from in ", config_.loop.output_dir, "; beginning afresh");
  }
  if (compute_.rank != 0) return;
  metrics_.emplace(config_.loop.output_dir, config_.metrics, run_name(config_), progress_.step,
                   total_steps_);
  if (from.step > 0) metrics_->line("event", progress_.step, {{"what", "resumed"}});
}

}  // namespace llava::train
