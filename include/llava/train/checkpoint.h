// Checkpoints: everything a run needs to go on bit for bit, or nothing.
//
//   checkpoint-N/state.safetensors  tensors: weights that learn, moments, random generators
//   checkpoint-N/manifest.json      {"format", "step", "files": [{"name", "bytes", "crc32c"}],
//                                    "state": {...}, "crc32c"}; the last covers the rest of it
//
// A checkpoint is written into a folder of another name; its files are flushed to the disk, the
// manifest last, and the folder is renamed. So a folder called checkpoint-N is whole, and one that
// is not, after a disk fault or a copy cut short, is found out by its manifest and never taken.
#pragma once

#include "llava/base/config.h"
#include "llava/weights/state_dict.h"

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <string>

namespace llava::train {

struct CheckpointConfig {
  std::string save_strategy = "steps";
  std::int64_t save_steps = 500;
  std::int64_t save_total_limit = 0;
  std::string resume_from_checkpoint;
  bool overwrite_output_dir = false;

  template <class Field>
  void fields(Field& field) {
    field("save_strategy", save_strategy, "when checkpoints are saved: steps, epoch or no");
    field("save_steps", save_steps, "steps from one checkpoint to the next");
    field("save_total_limit", save_total_limit, "checkpoints kept, the newest; 0: all");
    field("resume_from_checkpoint", resume_from_checkpoint,
          "go on from the `last` checkpoint of output_dir (afresh when there is none), or from a "
          "checkpoint folder");
    field("overwrite_output_dir", overwrite_output_dir,
          "begin afresh in an output_dir that holds an earlier run, removing its checkpoints");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const CheckpointConfig& config);

struct Checkpoint {
  std::int64_t step = 0;       // optimizer steps done
  Json state;                  // everything that is not a tensor
  weights::StateDict tensors;  // over the file's mapping when loaded
};

/// Writes a whole checkpoint folder in `folder` under its final name; an unreadable one of that
/// name is moved aside. Throws Error(failure) for a full disk, Error(usage) for a place that cannot
/// be written; earlier checkpoints are untouched then.
void write_checkpoint(const std::string& folder, const Checkpoint& checkpoint);

/// Reads and verifies one.  Throws Error(data) saying what is torn.
Checkpoint read_checkpoint(const std::string& path);

/// Folders named checkpoint-N in `folder`, newest first, whole or not.
std::vector<std::string> list_checkpoints(const std::string& folder);

/// The newest checkpoint in `folder` that is whole; torn ones are warned about and left in place.
std::optional<Checkpoint> last_checkpoint(const std::string& folder);

/// Removes whole checkpoints but the newest `limit`; 0 removes none.
void prune_checkpoints(const std::string& folder, std::int64_t limit);

/// Removes what a killed save left in `folder`.
void remove_unfinished_checkpoints(const std::string& folder);

/// Saves on a thread of its own, one at a time.
class CheckpointWriter {
 public:
  CheckpointWriter(std::string folder, std::int64_t limit);
  ~CheckpointWriter();  // waits; an error of the last save is logged

  /// Copies the tensors into main memory and returns; the rest happens behind. `on_saved` runs on
  /// the writer's thread once the checkpoint is safe.  Throws what an earlier save threw.
  void save(const Checkpoint& checkpoint, std::function<void()> on_saved);

  /// Until nothing is being written.  Throws what the save threw.
  void wait();

 private:
  std::string folder_;
  std::int64_t limit_;
  std::future<void> pending_;
};

}  // namespace llava::train
