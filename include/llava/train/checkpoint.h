// Checkpoints: everything a run needs to go on bit for bit, or nothing.
//
//   checkpoint-N/state-R.safetensors  tensors of rank R: weights that learn, moments, random states
//   checkpoint-N/manifest.json        {"format", "step", "files": [{"name", "bytes", "crc32c"}],
//                                      "state": {...}, "crc32c"}; the last covers the rest of it
//
// A checkpoint is written into a folder of another name, by all ranks; its files are flushed to the
// disk, the manifest last, and the folder is renamed. So a folder called checkpoint-N is whole, and
// one that is not, after a disk fault or a copy cut short, is found out by its manifest and never
// taken. Tensors are whole or pieces "name[begin:end]" of a flattened one; restore_tensor() puts
// them together, so that a run can go on with another number of processes.
#pragma once

#include "llava/base/config.h"
#include "llava/weights/state_dict.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <vector>

namespace llava::train {

struct CheckpointConfig {
  std::string save_strategy = "steps";
  std::int64_t save_steps = 500;
  std::int64_t save_total_limit = 0;
  std::string resume_from_checkpoint = "";
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
  Json state;                  // everything that is not a tensor; of rank 0
  weights::StateDict tensors;  // this rank's to write; all ranks' when read
};

/// Who writes a checkpoint. `token` is the same on all ranks and differs from run to run.
struct Writers {
  std::int64_t rank = 0, world_size = 1;
  std::string token = "0";
};

/// Writes this rank's part of a checkpoint in `folder`; rank 0 waits for the others' and gives the
/// whole its final name, moving an unreadable one of that name aside. Throws Error(failure) for a
/// full disk, Error(usage) for a place that cannot be written, Error(peer) when the others do not
/// come before `gives_up()`; earlier checkpoints are untouched then.
void write_checkpoint(const std::string& folder, const Checkpoint& checkpoint,
                      const Writers& writers = {}, const std::function<bool()>& gives_up = {});

/// Reads one; `verifies` that every byte is as written.  Throws Error(data) saying what is torn.
Checkpoint read_checkpoint(const std::string& path, bool verifies = true);

/// Fills `tensor`, called `name` ("exp_avg.w" or a piece "exp_avg.w[0:512]"), from what a
/// checkpoint holds of it, whole or in pieces. In names that end in "_scale" a value stands for
/// `block` of the piece's.  Throws Error(data) unless all of it is there.
void restore_tensor(const weights::StateDict& saved, const std::string& name,
                    const torch::Tensor& tensor, std::int64_t block);

/// Folders named checkpoint-N in `folder`, newest first, whole or not.
std::vector<std::string> list_checkpoints(const std::string& folder);

/// The newest checkpoint in `folder` that is whole, "" when there is none; torn ones are warned
/// about and left in place.
std::string last_checkpoint(const std::string& folder);

/// Removes whole checkpoints but the newest `limit`; 0 removes none.
void prune_checkpoints(const std::string& folder, std::int64_t limit);

/// Removes what a killed save left in `folder`.
void remove_unfinished_checkpoints(const std::string& folder);

/// Saves on a thread of its own, one at a time.
class CheckpointWriter {
 public:
  CheckpointWriter(std::string folder, std::int64_t limit, Writers writers = {});
  ~CheckpointWriter();  // waits for the disk, not for other ranks; a last save's error is logged

  /// Copies the tensors into main memory and returns; the rest happens behind. `on_saved` runs on
  /// the writer's thread once the checkpoint is safe.  Throws what an earlier save threw.
  void save(const Checkpoint& checkpoint, std::function<void()> on_saved);

  /// Until nothing is being written.  Throws what the save threw.
  void wait();

 private:
  std::string folder_;
  std::int64_t limit_;
  Writers writers_;
  std::atomic<bool> leaves_{false};
  std::future<void> pending_;
};

}  // namespace llava::train
