// What fewer bits cost: how far a decoder's logits move when its weights are packed.
#pragma once

#include "llava/model/llava.h"

namespace llava::cli {

class LogitError {
 public:
  /// Notes the logits of a prompt's last 64 tokens, with the weights as they are now.
  LogitError(model::Llava model, const input::Batch& batch);

  /// The norm of what they differ by now, as a share of their norm then.
  double now() const;

 private:
  torch::Tensor logits() const;

  mutable model::Llava model_;
  model::Spliced prompt_;
  torch::Tensor before_;  // [n, V]
};

}  // namespace llava::cli
