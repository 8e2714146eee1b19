// ZeRO 1, 2 and 3: ranks share optimizer states, gradients and weights.
#pragma once

#include "llava/dist/gradient_sync.h"

namespace llava::dist {

std::unique_ptr<GradientSync> make_zero(const SyncConfig& config, const ProcessGroup& group,
                                        const Weights& weights);

}  // namespace llava::dist
