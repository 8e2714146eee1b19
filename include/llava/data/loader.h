// Batches ahead of need: worker threads read, decode, preprocess, encode and collate; steps come
// out in order, the same whatever the number of threads. Memory holds the step in use and a few
// samples more than one step ahead.
#pragma once

#include "llava/base/workers.h"
#include "llava/data/sampler.h"
#include "llava/input/batch.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>

namespace llava::data {

enum class OnBadImage { fail, skip };               // --on_bad_image
enum class OnOverlength { error, drop, truncate };  // --on_overlength

/// Throw Error(usage) naming the choices.
OnBadImage parse_on_bad_image(const std::string& word);
OnOverlength parse_on_overlength(const std::string& word);

struct LoaderConfig {
  MediaConfig media;
  std::int64_t workers = 1;                    // threads; at least 1
  std::int64_t max_tokens = 0;                 // model_max_length, after splicing; 0: no limit
  OnBadImage on_bad_image = OnBadImage::fail;  // skip leaves out any sample that cannot be read
  OnOverlength on_overlength = OnOverlength::truncate;  // what the reference does, silently
  bool pinned = false;  // batches in memory that a GPU reads by itself
};

/// Samples that were not taken as they are.
struct Losses {
  std::int64_t skipped = 0;       // could not be read
  std::int64_t dropped = 0;       // over-long, left out
  std::int64_t truncated = 0;     // over-long, cut
  std::int64_t unsupervised = 0;  // taken, but nothing is learned from them
};

/// One rank's part of one optimizer step.
struct Step {
  std::int64_t step = 0;  // from 0
  /// As the sampler planned them, never fewer: one whose samples were all left out is a single
  /// token that is not learned, so that every rank does the same number of passes.
  std::vector<input::Batch> micro_batches;
  std::int64_t num_samples = 0;
  std::int64_t num_tokens = 0;   // after splicing
  std::int64_t num_learned = 0;  // supervised tokens
  Losses losses;
  std::vector<std::string> skipped;  // why, of each that was skipped
};

class Loader {
 public:
  /// `records` and `encoder` must outlive it. Nothing is read before the first next().
  Loader(const Records& records, const input::Encoder& encoder, Sampler sampler,
         LoaderConfig config);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next call of next() returns this step; steps prepared for another place are dropped.
  void seek(std::int64_t step);

  /// The next step, waiting for it. Throws what reading a sample threw, naming file, line and
  /// sample, when that sample's step is due.
  Step next();

  const Sampler& sampler() const { return sampler_; }
  double seconds_waited() const { return seconds_waited_; }  // in next(), so far

 private:
  /// One sample of a micro-batch, before and after a worker had it.
  struct Row {
    std::int64_t index = 0;
    std::optional<input::Example> example;
    Losses losses;
    std::string note;  // why it was left out or cut
    std::exception_ptr error;
  };
  struct MicroBatch {
    std::vector<Row> rows;
    std::size_t unfinished = 0;
    input::Batch batch;
    std::exception_ptr error;
  };
  /// A step being prepared.
  struct Pending {
    std::int64_t step = 0;
    std::vector<MicroBatch> micro_batches;
    std::size_t num_rows = 0;
    std::size_t unfinished = 0;                // micro-batches
    std::size_t next_micro = 0, next_row = 0;  // to be taken by a worker
  };
  struct Job {
    std::shared_ptr<Pending> pending;
    MicroBatch* micro_batch = nullptr;
    Row* row = nullptr;
  };

  void work();
  std::optional<Job> take_job();
  std::optional<Job> find_job();
  void prepare(Row& row) const;
  void finish(const Job& job);
  void report(const Row& row);
  Step collect(Pending& pending);

  const Records& records_;
  const input::Encoder& encoder_;
  Sampler sampler_;
  LoaderConfig config_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending>> pending_;  // in order of their steps
  std::size_t rows_ahead_ = 0;                    // in pending_
  std::int64_t next_planned_ = 0;
  std::exception_ptr failure_;  // of the sampler
  bool stopped_ = false;
  bool started_ = false;
  double seconds_waited_ = 0;
  std::int64_t notes_shown_ = 0;
  WorkerGroup workers_;
};

}  // namespace llava::data
