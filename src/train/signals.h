// SIGTERM, SIGINT, SIGHUP and SIGUSR1 ask a run to stop after the step it is at; a second one ends
// the process at once.
#pragma once

#include <array>
#include <csignal>
#include <string>

namespace llava::train {

/// Listens while it lives; one at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// Name of the signal that came, "" while none has.
  static std::string received();

 private:
  static constexpr std::array<int, 4> kSignals{SIGTERM, SIGINT, SIGHUP, SIGUSR1};
  std::array<struct sigaction, kSignals.size()> before_{};
};

}  // namespace llava::train
