// The loss of samples with pictures and of those without, from the losses of their tokens.
#pragma once

#include "llava/input/batch.h"

namespace llava::train {

/// Sums over a batch's learned tokens.
struct ByModality {
  torch::Tensor image, text;  // [] float32, on the device
  std::int64_t image_tokens = 0, text_tokens = 0;
};

/// `each` [n] float32: the loss of every learned token of `batch`, in order (nn::TokenLoss). The
/// batch's labels are on the CPU.
ByModality split_by_modality(const input::Batch& batch, const torch::Tensor& each);

}  // namespace llava::train
