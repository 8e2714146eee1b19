// Floating-point operations that a training step needs (not those it spends: recomputation does not
// count), and those a device could do. A multiply-add is two; norms, softmax and activations are
// not counted. MFU as in "PaLM: Scaling Language Modeling with Pathways", appendix B.
#pragma once

#include "llava/input/batch.h"
#include "llava/model/llava.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::train {

/// What of a model learns, as far as the work of backward depends on it.
struct Learning {
  bool vision = false, projector = false, llm = false, lora = false;
  std::int64_t lora_parameters = 0;
};
Learning learning_of(const model::Llava& model);

/// What forward and backward work on.
struct Work {
  double tokens = 0;   // after splicing
  double pairs = 0;    // of a token and one it sees
  double learned = 0;  // positions that go through the output head, and the last layer's end
  double tiles = 0;
};
Work work_of(const input::Batch& batch);

double useful_flops(const model::LlavaConfig& config, const Learning& learning, const Work& work);

/// Those of the decoder's layers in one forward: what full recomputation spends besides.
double layer_flops(const model::LlamaConfig& config, const Work& work);

/// Dense operations a second of a device in a dtype: from its maker's tables for known GPUs,
/// measured by a matrix product on the CPU; nothing for an unknown GPU.
std::optional<double> peak_flops(torch::Device device, torch::ScalarType dtype);

/// Of a GPU by its name, which need only hold one of those known; nothing for an unknown one.
std::optional<double> peak_flops(const std::string& gpu, torch::ScalarType dtype);
std::vector<std::string> known_gpus();

}  // namespace llava::train
