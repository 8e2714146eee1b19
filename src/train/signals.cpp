#include "signals.h"

#include <cstring>

namespace llava::train {
namespace {

// The one thing a signal handler may touch.
volatile std::sig_atomic_t received_signal = 0;

void remember(int signal) {
  if (received_signal == 0) {
    received_signal = signal;
    return;
  }
  std::signal(signal, SIG_DFL);  // the second one: what it does to other programs
  std::raise(signal);
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before_[i]);
}

StopSignals::~StopSignals() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

std::string StopSignals::received() {
  const int signal = received_signal;
  return signal == 0 ? "" : std::string("SIG") + ::sigabbrev_np(signal);
}

}  // namespace llava::train
