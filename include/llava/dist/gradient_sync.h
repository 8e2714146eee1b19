// How gradients of the ranks become one: the seam the trainer sees. One object per strategy.
#pragma once

#include "llava/torch.h"

#include <memory>

namespace llava::dist {

class GradientSync {
 public:
  virtual ~GradientSync() = default;

  /// Runs backward; exchanges gradients only when `last_micro_step`. `loss` is this rank's share of
  /// the step's loss, so that the gradients of all ranks and micro-steps add up, never average.
  virtual void backward(const torch::Tensor& loss, bool last_micro_step) = 0;
};

/// One process: its gradients are the gradients.
std::unique_ptr<GradientSync> alone();

}  // namespace llava::dist
