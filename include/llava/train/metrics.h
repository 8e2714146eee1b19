// What a run says of itself while it goes on: metrics.jsonl, TensorBoard events, loss.svg, a
// progress bar on terminals and plain lines elsewhere.
#pragma once

#include "llava/base/config.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace llava::train {

struct MetricsConfig {
  std::int64_t logging_steps = 1;
  std::string report_to = "tensorboard";
  std::string run_name = "";

  template <class Field>
  void fields(Field& field) {
    field("logging_steps", logging_steps, "steps from one logged step to the next");
    field("report_to", report_to, "tensorboard or none; metrics.jsonl is always written");
    field("run_name", run_name, "what the progress bar calls the run; empty: what learns");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const MetricsConfig& config);

/// One logged step: means over the steps since the one logged before, unless said otherwise.
struct StepMetrics {
  std::int64_t step = 0;  // from 1
  double epoch = 0;
  double loss = 0;
  std::optional<double> loss_image, loss_text;  // of tokens of samples with and without pictures
  double learning_rate = 0;                     // of this step, the common one
  double grad_norm = 0;                         // of this step, before clipping
  std::int64_t tokens = 0;  // trained on since the run began, pictures' rows included
  double tokens_per_second = 0;
  std::optional<double> mfu;   // useful FLOPs done of those possible; nothing: speed unknown
  double step_time = 0;        // seconds
  double data_time = 0;        // seconds of it spent waiting for data
  std::int64_t mem_peak = 0;   // bytes
  std::int64_t mem_total = 0;  // bytes of the device; 0: unknown
  std::int64_t skipped = 0;    // samples left out and updates not made, since the run began
};

/// A count as people read it: 950, 38.2k, 7.06G.
std::string short_count(double value);

/// Seconds as tqdm shows them: 42:10, 3:42:10.
std::string clock_text(double seconds);

/// The progress bar's line. `elapsed` are the seconds since step `first_step`, where this process
/// began.
std::string bar_text(const std::string& name, const StepMetrics& metrics, std::int64_t total_steps,
                     std::int64_t first_step, double elapsed);

/// The curve of a metrics.jsonl as an SVG picture; "" when it has no logged step.
std::string loss_svg(const std::vector<Json>& lines);

class Metrics {
 public:
  /// Files in `folder` (made if missing). What they say of steps after `resumed_step` is cut.
  /// Throws Error(usage) if the folder cannot be written.
  Metrics(std::string folder, const MetricsConfig& config, std::string name,
          std::int64_t resumed_step, std::int64_t total_steps);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void step(const StepMetrics& metrics);

  /// A line of another kind: "eval", "save", "warn", "event" or "end". Numbers of "eval" and "end"
  /// go to TensorBoard too.
  void line(const std::string& kind, std::int64_t step, const Json& fields);

  /// Draws loss.svg anew.
  void draw();

 private:
  struct Files;
  void append(const Json& line);

  std::string folder_, name_;
  std::int64_t first_step_, total_steps_;
  double began_;  // seconds on a steady clock
  std::unique_ptr<Files> files_;
};

/// The lines of a metrics.jsonl; a last line cut off by a kill is left out.  Throws Error(data) for
/// anything else that is not a line of ours.
std::vector<Json> read_metrics(const std::string& path);

}  // namespace llava::train
