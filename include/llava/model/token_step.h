// A model's decoder and head as nn::TokenStep takes them.
#pragma once

#include "llava/model/llava.h"
#include "llava/nn/token_step.h"

#include <memory>

namespace llava::model {

/// nullptr unless the model is on a CPU that has the kernels, in bfloat16, all its Linears packed
/// and without LoRA, and attention sees the whole context. Weights are shared, not copied.
std::shared_ptr<nn::TokenStep> make_token_step(const Llava& model);

}  // namespace llava::model
