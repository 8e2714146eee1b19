// What fewer bits cost: how far a decoder's logits move when its weights are packed.
#pragma once

#include "llava/input/batch.h"
#include "llava/model/llava.h"

namespace llava::cli {

class LogitError {
 public:
  /// Notes the logits of a prompt's last 64 tokens, with the weights as they are now.
  LogitError(model::Llava model, const input::Batch& batch);

  /// The norm of what they differ by now, as a share of their norm then: where the prompt goes
  /// through the decoder whole, and where these tokens come behind the others one by one.
  double of_prompt() const;
  double of_decode() const;

 private:
  double distance(const torch::Tensor& logits) const;

  mutable model::Llava model_;
  torch::Tensor prompt_;  // [T, D]
  torch::Tensor before_;  // [n, V]
};

}  // namespace llava::cli
