// AdamW on fp32 master weights, with global gradient clipping. Nothing in it waits for the device.
// Source: "Decoupled Weight Decay Regularization", algorithm 2; torch.optim.AdamW.
#pragma once

#include "llava/torch.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llava::train {

struct OptimizerConfig {
  std::string optim = "adamw_torch_fused";
  double weight_decay = 0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double max_grad_norm = 1;

  template <class Field>
  void fields(Field& field) {
    field("optim", optim, "adamw_torch_fused, or adamw_8bit: moments in 8 bits, for less memory");
    field("weight_decay", weight_decay, "decay of all weights but norms and biases");
    field("adam_beta1", adam_beta1, "decay of the first moment");
    field("adam_beta2", adam_beta2, "decay of the second moment");
    field("adam_epsilon", adam_epsilon, "added to the root of the second moment");
    field("max_grad_norm", max_grad_norm, "gradients are scaled down to this norm; 0: never");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const OptimizerConfig& config);

/// Parameters that share a learning rate and a weight decay.
struct ParameterGroup {
  std::string part;  // for people: "projector"
  double learning_rate = 0;
  double weight_decay = 0;
  std::vector<std::pair<std::string, torch::Tensor>> parameters;  // by full name
};

class Optimizer {
 public:
  /// Parameters wider or narrower than fp32 get an fp32 master copy; the rest are their own.
  Optimizer(std::vector<ParameterGroup> groups, const OptimizerConfig& config);

  /// Norm of all gradients as one vector, [] float32. A parameter that took no part in the loss has
  /// gradient zero.
  torch::Tensor gradient_norm();

  /// One update; `rate_factor` multiplies every group's learning rate. Gradients are scaled down so
  /// that `norm` ([] float32, of all ranks' parameters) becomes at most max_grad_norm. Where `skip`
  /// ([] float32) is 1 nothing changes at all.
  void step(double rate_factor, const torch::Tensor& norm, const torch::Tensor& skip);

  void zero_grad();

  /// Everything that lives from step to step, under stable names; writing into these tensors and
  /// calling weights_from_masters() restores an optimizer and its weights.
  std::vector<std::pair<std::string, torch::Tensor>> state() const;
  void weights_from_masters();

  /// Bytes of state() beyond the weights themselves.
  std::int64_t state_bytes() const;

  const std::vector<ParameterGroup>& groups() const { return groups_; }

 private:
  /// Parameters of one group that are updated by one call: equal dtype and device.
  struct Slot {
    std::size_t group = 0;
    std::vector<std::string> names;
    std::vector<torch::Tensor> parameters, masters;  // the same tensors where they are fp32
    std::vector<torch::Tensor> exp_avgs, exp_avg_sqs;
    std::vector<torch::Tensor> avg_scales, sq_scales;  // of 8-bit moments
    bool has_masters = false;
  };

  struct Update {
    double rate_factor;
    torch::Tensor gradient_scale;  // [] float32, or undefined
    torch::Tensor skip;
  };
  void update(Slot& slot, const ParameterGroup& group, const Update& update);

  std::vector<ParameterGroup> groups_;
  OptimizerConfig config_;
  bool eight_bit_ = false;
  std::vector<Slot> slots_;
  torch::Tensor step_;  // [] float32: updates made
};

}  // namespace llava::train
