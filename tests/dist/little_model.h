// A model small enough to train in a test, with all that makes distributed training hard: parts
// that only some rows use, frozen weights, two dtypes, layers with callbacks, recomputation.
#pragma once

#include "llava/dist/gradient_sync.h"

namespace llava::dist::testing {

constexpr std::int64_t kWidth = 24, kLayers = 4, kRows = 8;

struct LittleModel {
  /// The same weights for the same seed. Frozen: one matrix of each layer.
  explicit LittleModel(std::uint64_t seed, bool layers_learn = true);

  /// Sum over the rows [begin, end) of step `step`'s batch of kRows of a loss; rows 0 and 1 alone
  /// use the projector.
  torch::Tensor loss(std::int64_t step, std::int64_t begin, std::int64_t end) const;

  NamedTensors parameters;           // by name, in order of use
  std::vector<std::int64_t> layers;  // of each parameter
  bool recompute = false;
  GradientSync* sync = nullptr;  // is told of layers

  Weights weights() const { return {parameters, layers}; }
  torch::Tensor at(const std::string& name) const;
};

/// Adam on tensors with gradients, as an optimizer that knows of no ranks.
class Adam {
 public:
  explicit Adam(NamedTensors parameters);
  torch::Tensor gradient_norm() const;
  void step(double scale);
  std::int64_t state_bytes() const;

 private:
  NamedTensors parameters_;
  std::vector<torch::Tensor> means_, squares_;
  int steps_ = 0;
};

struct Training {
  SyncConfig sync = {};
  std::int64_t steps = 20;
  std::int64_t accumulation = 1;
  bool recompute = false;
  bool layers_learn = true;
};

/// Trains on this rank's share of the rows and returns all weights at the end, as one fp64 vector.
torch::Tensor train(const ProcessGroup& group, const Training& training);

}  // namespace llava::dist::testing
