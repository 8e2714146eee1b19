// Which samples make each step, for one rank: a pure function of (seed, step), so that a run
// resumes from its step number alone. Two decisions, one after the other: an order of all samples
// cuts them into global batches (members); dealing gives each rank its micro-batches of one such
// batch.
#pragma once

#include "llava/data/sample.h"

#include <cstdint>
#include <vector>

namespace llava::data {

/// What orders and deals depend on, one entry a sample.
struct Lengths {
  std::vector<std::int32_t> words;    // the reference's modality_lengths: < 0 without pictures
  std::vector<std::int32_t> tokens;   // after splicing, at least 1
  std::vector<std::int32_t> learned;  // of these, supervised ones; empty: not to be balanced
};

/// Lengths without tokenizing: words exactly as the reference counts them; tokens estimated as a
/// quarter of the text's bytes, 8 for a turn's frame, 40 for the beginning, `picture_rows` a
/// picture; learned ones as a quarter of the answers' bytes and one for each end. Reads every
/// record once, on `threads` threads.  Throws Error(data) naming the first broken one.
Lengths estimate_lengths(const Records& records, std::int64_t picture_rows, std::int64_t threads);

/// Lengths with every sample tokenized and every picture's header read.
Lengths measure_lengths(const Records& records, const input::Encoder& encoder,
                        const MediaConfig& media, std::int64_t threads);

enum class Order {
  sequential,  // as the files have them
  shuffled,
  grouped  // --group_by_modality_length: like lengths together, pictures and plain text apart
};

struct SamplerConfig {
  Order order = Order::shuffled;
  bool balanced = true;           // deal by tokens; false: in order, as the reference does
  std::int64_t rows = 1;          // a micro-batch: per_device_train_batch_size
  std::int64_t accumulation = 1;  // gradient_accumulation_steps
  std::int64_t token_budget = 0;  // tokens_per_micro_batch; 0: micro-batches are cut by rows
  std::uint64_t seed = 42;
  std::int64_t rank = 0, world = 1;
};

/// Micro-batches of record indices. Every rank has equally many, so that collectives match.
using Plan = std::vector<std::vector<std::int64_t>>;

/// Not for two threads at once.
class Sampler {
 public:
  /// Throws Error(usage) on a setting out of range.
  Sampler(Lengths lengths, SamplerConfig config);

  /// rows * accumulation * world samples a step; an epoch's last batch holds what is left,
  /// completed from the epoch's first samples to whole micro-batches when there are several ranks.
  std::int64_t steps_per_epoch() const;

  /// The samples of a global batch, the same on every rank; steps count from 0, over all epochs.
  std::vector<std::int64_t> members(std::int64_t step);

  /// This rank's part of them.
  Plan step(std::int64_t step);

  const SamplerConfig& config() const { return config_; }
  const Lengths& lengths() const { return lengths_; }

 private:
  Lengths lengths_;
  SamplerConfig config_;
  std::int64_t epoch_ = -1;
  std::vector<std::int64_t> order_;  // of epoch_
};

/// The order of one epoch, completed as described at steps_per_epoch().
std::vector<std::int64_t> epoch_order(const Lengths& lengths, const SamplerConfig& config,
                                      std::int64_t epoch);

/// Deals a global batch to all ranks so that they, and their micro-batches, carry equal tokens, and
/// then, as far as that stays true, equal supervised tokens: plans[rank][micro-batch]. Without a
/// budget a micro-batch has at most config.rows samples; with one, the fewest micro-batches whose
/// tokens stay within it, single samples excepted.
std::vector<Plan> deal(const std::vector<std::int64_t>& members, const Lengths& lengths,
                       const SamplerConfig& config);

}  // namespace llava::data
