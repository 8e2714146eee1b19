// Inner loops of cpu_flash. No torch here, and nothing that allocates. Element is float or bfloat16
// (as std::uint16_t).
//   T tokens of a row   G query heads that share keys and values   E head size, even
#pragma once

#include <cstdint>

namespace llava::nn::cpu {

/// Attention of a row's query heads that share one head of keys and values. Strides lead from token
/// to token and count elements; the heads of a token are side by side.
template <class Element>
struct FlashRow {
  const Element* q;             // [T, G, E]
  const Element *k, *v;         // [T, E]
  std::int64_t stride;          // of q and all that is shaped like it
  std::int64_t kv_stride;       // of k, v and all that is shaped like them
  std::int64_t num_heads;       // G
  std::int64_t length;          // T
  std::int64_t head_size;       // E
  bool is_causal;               // false: every query sees every key
  float scale;                  // of the scores, positive
  std::int64_t log_sum_stride;  // from head to head
};

template <class Element>
struct FlashGradients {
  const Element *output, *grad;  // [T, G, E]
  const float* log_sums;         // [G, T]
  Element* grad_q;               // [T, G, E]
  Element *grad_k, *grad_v;      // [T, E]
};

/// Whether this CPU has what they need; else nothing below may be called.
bool has_flash();

/// output [T, G, E], and of each query the logarithm of the sum of its exponentials, [G, T].
void flash_forward(const FlashRow<float>& row, float* output, float* log_sums, float* scratch);
void flash_forward(const FlashRow<std::uint16_t>& row, std::uint16_t* output, float* log_sums,
                   float* scratch);

void flash_backward(const FlashRow<float>& row, const FlashGradients<float>& gradients,
                    float* scratch);
void flash_backward(const FlashRow<std::uint16_t>& row,
                    const FlashGradients<std::uint16_t>& gradients, float* scratch);

/// Floats of scratch: a few times [T, E], and nothing [T, T].
std::int64_t flash_forward_scratch(std::int64_t length, std::int64_t head_size);
std::int64_t flash_backward_scratch(std::int64_t length, std::int64_t head_size);

}  // namespace llava::nn::cpu
