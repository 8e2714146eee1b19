// Time in milliseconds, and waiting for a device so that it means something.
#pragma once

#include "llava/torch.h"

#include <chrono>

namespace llava::generate {

class Clock {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Waits until `tensor` is computed.
inline void wait_for(const torch::Tensor& tensor) {
  if (tensor.is_cuda()) tensor.flatten().narrow(0, 0, 1).cpu();
}

}  // namespace llava::generate
