// Whether what is computed now needs no gradients, ever, so that kernels may serve which round
// otherwise than training's do.
#pragma once

#include "llava/nn/gradients.h"
#include "llava/torch.h"

namespace llava::nn {

/// Around a forward that backward will run again with gradients: gradients are off in it, but it is
/// training, and must give the bits that the second run gives.
class RunsAgain {
 public:
  RunsAgain() { ++depth; }
  ~RunsAgain() { --depth; }
  RunsAgain(const RunsAgain&) = delete;
  RunsAgain& operator=(const RunsAgain&) = delete;

  static inline thread_local int depth = 0;
};

inline bool is_inference() { return !torch::GradMode::is_enabled() && RunsAgain::depth == 0; }

/// Whether training's products and attention may serve: gradients are recorded, now or when this
/// runs again, or nobody needs them but training alone sees the result.
inline bool is_part_of_training() { return !is_inference() || PartOfTraining::is_on(); }

}  // namespace llava::nn
