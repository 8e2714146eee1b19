// Decode on a GPU: one step recorded as a graph, tokens chosen on the device where the likeliest
// are wanted, so that the host never stands between two steps.
//   B rows   V vocabulary
#pragma once

#include "llava/model/llava.h"
#include "llava/nn/recorded.h"
#include "llava/nn/token_step.h"

#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace llava::model {

class DeviceStep {
 public:
  /// Whether the model's positions and attention allow it.
  static bool is_possible(const Llava& model);

  explicit DeviceStep(Llava model);

  /// Puts each token behind its row, whose cache has grown by it when this returns. A step is
  /// recorded when the same caches come a second time. Throws Error(capacity) when a cache is full.
  void forward(std::span<const nn::NextToken> tokens);

  /// Goes on behind one row with the likeliest tokens until `take`, which gets each, says no or the
  /// cache is full. A step runs while its forerunner's token is being taken; the cache has grown by
  /// `first` and all tokens but the last. `first.logits` is not looked at.  Throws
  /// Error(non_finite) where the logits are no numbers.
  void likeliest(const nn::NextToken& first, const std::function<bool(std::int64_t id)>& take);

  /// Whether the last step was played from a recording.
  bool is_recorded() const { return recorded_ && recorded_->is_recorded(); }

 private:
  void bind(std::span<const nn::NextToken> tokens, std::int64_t longest);
  void set_inputs(std::span<const nn::NextToken> tokens);
  void compute();

  Llava model_;
  torch::Device device_;
  // What a step works on; rows of the first two are ids and positions.
  torch::Tensor host_inputs_, inputs_;  // [2, B] int64
  torch::Tensor logits_, host_logits_;  // [B, V] float32
  std::vector<nn::KvCache*> caches_;
  std::vector<const void*> places_;  // where the caches' numbers lie
  std::int64_t window_ = 0;          // tokens of a cache that are looked at
  std::int64_t times_bound_ = 0;     // how often the same caches came
  std::unique_ptr<nn::RecordedWork> recorded_;
};

/// nullptr unless the model is on a GPU and it is possible.
std::shared_ptr<DeviceStep> make_device_step(const Llava& model);

}  // namespace llava::model
