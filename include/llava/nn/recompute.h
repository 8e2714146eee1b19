// Trading memory for a second forward: "Training Deep Nets with Sublinear Memory Cost". A block's
// inner activations are dropped after forward and made again in backward, with the same random
// numbers.
#pragma once

#include "llava/nn/linear.h"

#include <functional>
#include <vector>

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

/// A tensor [T, in] by how it is made from others at no matrix product's cost: a norm of x, an
/// activation of two.
struct Made {
  using Make = std::function<torch::Tensor(const std::vector<torch::Tensor>&)>;

  Made(const torch::Tensor& value) : inputs{value} {}  // made already
  Made(Make make, std::vector<torch::Tensor> inputs, bool is_kept)
      : make(std::move(make)), inputs(std::move(inputs)), is_kept(is_kept) {}

  Make make;
  std::vector<torch::Tensor> inputs;
  bool is_kept = true;  // false: dropped after forward and made again in backward
};

/// Each Linear of one and the same input: [T, out] each. Gradients are those of making the input
/// first. Where LoRA's dropout is at work the input is kept, whatever it says.
std::vector<torch::Tensor> linears(const std::vector<Linear>& linears, const Made& input);

/// silu(gate(x)) * up(x) [T, N], where that is one pass over packed weights; else undefined.
torch::Tensor gated_linears(const Linear& gate, const Linear& up, const Made& input);

/// residual + linear(x): [T, out].
torch::Tensor add_linear(const torch::Tensor& residual, const Linear& linear, const Made& input);

/// Whether any parameter of a module is being trained.
bool is_trainable(const torch::nn::Module& module);

}  // namespace llava::nn
