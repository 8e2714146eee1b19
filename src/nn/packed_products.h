// Products of rows with packed weights, from memory to memory: what multiply() of tensors and the
// token step share.
//   T rows   K inputs   N outputs
#pragma once

#include "llava/nn/packed.h"

#include <span>

namespace llava::nn {

/// Numbers [T, K], one row behind another; bfloat16 or float32.
struct InputRows {
  const void* data;
  bool is_bfloat16;
  std::int64_t rows, inputs;
};

/// One weight, and where its products go: y [T, N].
struct Product {
  const PackedWeight* weight;
  const float* bias;  // [N] or nullptr
  void* y;
};

/// Products of one input with several weights of one packing, in one pass over them. bfloat16
/// weights need bfloat16 rows. y is bfloat16 or float32. A few rows take no memory.
void multiply_rows(const InputRows& x, std::span<const Product> products, bool y_is_bfloat16);

/// `added` [T, N] and the product, in bfloat16; y may be `added`.
void multiply_and_add(const InputRows& x, const Product& product, const std::uint16_t* added);

/// silu(gate) * up of two products, in bfloat16: y [T, N] of `gate` alone is written.
void multiply_gated(const InputRows& x, const Product& gate, const Product& up);

/// Inputs as a weight keeps them: the last group is filled up with zeros.
std::int64_t padded_inputs(std::int64_t inputs, Packing packing);

/// Room that a thread keeps for its next call; one for each `Use`.
template <class T, class Use>
T* scratch(std::int64_t count) {
  static thread_local std::vector<T> room;
  if (room.size() < static_cast<std::size_t>(count)) room.resize(static_cast<std::size_t>(count));
  return room.data();
}

}  // namespace llava::nn
