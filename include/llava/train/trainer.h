// The loop: step, log, validate, save.
#pragma once

#include "llava/dist/gradient_sync.h"
#include "llava/dist/process_group.h"
#include "llava/train/identity.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::train {

/// What a trainer works with; everything must outlive it.
struct TrainerParts {
  model::Llava model;
  ModelFacts facts;
  Optimizer& optimizer;
  TrainingData& data;
  dist::GradientSync& sync;
  const dist::ProcessGroup& group;
};

/// What has been done since the run began, in all its processes' lives.
struct Progress {
  std::int64_t step = 0;  // optimizer steps done
  std::int64_t samples = 0, tokens = 0;
  std::int64_t samples_skipped = 0, updates_skipped = 0;
  std::int64_t empty_steps = 0;  // all of whose samples were left out: they have no loss
  double loss_sum = 0;           // of the steps whose update was made

  template <class Field>
  void fields(Field& field) {
    field("step", step, "");
    field("samples", samples, "");
    field("tokens", tokens, "");
    field("samples_skipped", samples_skipped, "");
    field("updates_skipped", updates_skipped, "");
    field("empty_steps", empty_steps, "");
    field("loss_sum", loss_sum, "");
  }
};

/// One step; its figures may still be under way on the device.
struct StepReport {
  std::int64_t step = 0;  // from 1
  torch::Tensor figures;  // [5] float32: loss, gradient norm, 1 where the update was not made, and
                          // the losses of tokens of samples with pictures, and without, summed
  std::int64_t image_tokens = 0, text_tokens = 0;  // learned ones of those samples
  std::int64_t learned = 0;                        // tokens that have a loss, of all ranks
  double learning_rate = 0;
  double flops = 0;
  std::vector<std::string> samples;  // ids
};

class Trainer {
 public:
  Trainer(const TrainConfig& config, const Compute& compute, const TrainerParts& parts);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Goes on where the checkpoint that the settings name left off; without one, from the beginning.
  /// Throws Error(usage) saying why it cannot: other settings, other data, another model.
  void resume();

  /// Steps to the end; logs, validates and saves on the way.  Throws Error(stopped) after a signal,
  /// once everything is saved; Error(non_finite) as --on_nan has it, naming step and samples.
  void run();

  /// One optimizer step.
  StepReport step();

  /// Mean losses of learned tokens over the validation set.
  struct Validation {
    double loss = 0;
    std::optional<double> loss_image, loss_text;  // of samples with and without pictures
  };
  Validation evaluate();

  /// Everything needed to go on from here, and back. The random generators stay as they are unless
  /// `with_random`.
  Checkpoint checkpoint() const;
  void restore(const Checkpoint& checkpoint, bool with_random);

  const Progress& progress() const { return progress_; }
  std::int64_t total_steps() const { return total_steps_; }

 private:
  /// Steps since the last logged one.
  struct Interval {
    double began = 0, waited = 0;  // seconds, on clocks of our own
    std::int64_t steps = 0, empty_steps = 0, tokens = 0;
    double loss = 0, flops = 0;            // sums
    double image_loss = 0, text_loss = 0;  // sums over tokens
    std::int64_t image_tokens = 0, text_tokens = 0;
    double learning_rate = 0, grad_norm = 0;  // of the last
  };

  void count(const data::Step& work);
  torch::Tensor forward_and_backward(const data::Step& work, StepReport& report);
  void warn_of_skipped(const data::Step& work, std::int64_t step);
  void settle();
  void react_to_non_finite(const StepReport& report, double loss, double grad_norm);
  void begin_interval();
  void log_step();
  void validate();
  void save();
  void finish_saving();
  void stop(const std::string& signal);
  void write_end(double seconds, std::int64_t steps, std::int64_t samples_before);
  Checkpoint checkpoint_from(const std::string& path) const;
  bool is_due(const std::string& strategy, std::int64_t every) const;

  const TrainConfig& config_;
  Compute compute_;
  TrainerParts parts_;
  std::int64_t steps_per_epoch_, total_steps_;
  std::optional<double> peak_flops_;
  Json identity_;  // what must be the same where a run goes on

  Progress progress_;
  std::int64_t step_learned_ = 0;    // learned tokens of the step under way, of all ranks
  std::vector<StepReport> pending_;  // not yet read from the device
  Interval interval_;
  std::int64_t saved_step_ = -1, rollbacks_ = 0;  // the second: since the last checkpoint
  std::optional<Metrics> metrics_;                // on rank 0
  std::optional<CheckpointWriter> writer_;        // last: it finishes before the rest goes
};

}  // namespace llava::train
