// Work on a device that is the same every time, on the same memory: recorded once on a GPU as one
// graph, which the host starts as a whole instead of kernel by kernel; elsewhere done again.
#pragma once

#include "llava/torch.h"

#include <functional>

namespace llava::nn {

class RecordedWork {
 public:
  /// `work` must not wait for the device nor ask it anything. On a GPU it is done here, once or
  /// twice; where it cannot be recorded a warning says so, and run() does it as it is.
  RecordedWork(torch::Device device, std::function<void()> work);
  ~RecordedWork();
  RecordedWork(const RecordedWork&) = delete;
  RecordedWork& operator=(const RecordedWork&) = delete;

  void run();
  bool is_recorded() const { return graph_ != nullptr; }

 private:
  std::function<void()> work_;
  void* graph_ = nullptr;
};

}  // namespace llava::nn
