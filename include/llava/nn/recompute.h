// Trading memory for a second forward: "Training Deep Nets with Sublinear Memory Cost". A block's
// inner activations are dropped after forward and made again in backward, with the same random
// numbers.
#pragma once

#include "llava/torch.h"

#include <functional>

namespace llava::nn {

enum class Recompute {
  none,       // keep everything
  selective,  // make again what costs no matrix product: norm outputs, activation products
  full        // keep only each layer's input
};

/// block(x), recorded so that backward runs the block again. x -> y of any shape. Runs the block
/// plainly when gradients are off, or when neither x nor the block (`is_trainable`) needs any.
/// Parameters used inside get their gradients as usual.
torch::Tensor recompute(const std::function<torch::Tensor(const torch::Tensor&)>& block,
                        const torch::Tensor& x, bool is_trainable);

/// Whether any parameter of a module is being trained.
bool is_trainable(const torch::nn::Module& module);

}  // namespace llava::nn
