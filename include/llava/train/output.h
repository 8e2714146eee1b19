// The folder of a run: one run at a time in it, its settings and its machine written down.
#pragma once

#include "llava/train/config.h"

namespace llava::train {

/// Holds the folder while it lives.
class OutputFolder {
 public:
  /// Makes it, takes its lock, clears what a killed save left, and writes config.json and
  /// environment.json.  Throws Error(usage) if it cannot be written, another run is at work in it,
  /// or it holds checkpoints of an earlier run that this one does not go on from.
  OutputFolder(const TrainConfig& config, const Compute& compute);

 private:
  /// A file's descriptor: the system drops its lock with the process, however that ends.
  struct Lock {
    Lock() = default;
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    void open(const std::string& path);
    int descriptor = -1;
  };
  Lock lock_;
};

}  // namespace llava::train
