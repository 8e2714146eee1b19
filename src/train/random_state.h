// The random generators that a run draws from, as tensors.
#pragma once

#include "llava/weights/state_dict.h"

namespace llava::train {

/// States of the generators of the CPU and of a device, by name.
std::vector<std::pair<std::string, torch::Tensor>> random_states(torch::Device device);

/// Throws Error(data) if `state` lacks one of them.
void restore_random_states(const weights::StateDict& state, torch::Device device);

}  // namespace llava::train
