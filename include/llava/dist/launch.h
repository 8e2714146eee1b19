// One command, several processes on this machine: the program starts itself once per rank.
#pragma once

#include "llava/dist/process_group.h"

#include <cstdint>
#include <optional>

namespace llava::dist {

struct LaunchConfig {
  std::int64_t nproc_per_node = 0;

  template <class Field>
  void fields(Field& field) {
    field("nproc_per_node", nproc_per_node,
          "processes on this machine; 0: one for each GPU, one where there is none");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const LaunchConfig& config);

/// Nothing when this process is to do the work: it is alone, or one of several that a launcher
/// started (which then ends with its launcher). Else runs this program, with the same arguments, in
/// `config.nproc_per_node` (0: `devices`) processes as torchrun would, and returns what to exit
/// with once all have ended: 0, or the code of the first that failed; 5 if it was killed. Signals
/// are passed on; when one process fails the others have ten seconds to say why. Call it before
/// any tensor or thread exists.  Throws Error(usage) for a count that makes no sense.
std::optional<int> launch(const LaunchConfig& config, std::int64_t devices);

/// Starts this program over, once, with OpenMP told to let waiting threads sleep after some
/// microseconds (GOMP_SPINCOUNT), unless the environment says how they wait: by default they spin
/// for milliseconds, and with any other work on the machine a training step takes up to a hundred
/// times as long. libgomp reads the variable before main. Call it before anything is open.
void let_waiting_threads_sleep();

/// Which of `visible` GPUs this process uses.  Throws Error(usage) when there are too few.
std::int64_t device_index(const Place& place, std::int64_t visible);

}  // namespace llava::dist
