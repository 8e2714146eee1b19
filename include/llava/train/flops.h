// Floating-point operations that a training step needs (not those it spends: recomputation does not
// count), and those a device could do. A multiply-add is two; norms, softmax and activations are
// not counted. MFU as in "PaLM: Scaling Language Modeling with Pathways", appendix B.
#pragma once

#include "llava/input/batch.h"
#include "llava/model/llava.h"

#include <optional>
#include <string>

namespace llava::train {

/// What of a model learns, as far as the work of backward depends on it.
struct Learning {
  bool vision = false, projector = false, llm = false, lora = false;
  std::int64_t lora_parameters = 0;
};
Learning learning_of(const model::Llava& model);

/// Of one micro-batch's forward and backward.
double useful_flops(const model::LlavaConfig& config, const Learning& learning,
                    const input::Batch& batch);

/// Dense operations a second of a device in a dtype: from its maker's tables for known GPUs,
/// measured by a matrix product on the CPU; nothing for an unknown GPU.
std::optional<double> peak_flops(torch::Device device, torch::ScalarType dtype);

}  // namespace llava::train
