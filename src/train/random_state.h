// The random generators that a run draws from, as tensors.
#pragma once

#include "llava/weights/state_dict.h"

namespace llava::train {

/// States of the generators of the CPU and of a rank's device, by name.
std::vector<std::pair<std::string, torch::Tensor>> random_states(torch::Device device,
                                                                 std::int64_t rank);

/// A rank that `saved` does not know keeps its own.
void restore_random_states(const weights::StateDict& saved, torch::Device device,
                           std::int64_t rank);

}  // namespace llava::train
