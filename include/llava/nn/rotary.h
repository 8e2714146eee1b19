// Rotary position embedding in the rotate-half order of Hugging Face checkpoints.
// Source: "RoFormer", eq. 34; frequency scaling: transformers 5.24, modeling_rope_utils.py.
//   T tokens of all rows   H heads   E size of one head
#pragma once

#include "llava/torch.h"

#include <span>
#include <utility>
#include <vector>

namespace llava::nn {

struct RotaryConfig {
  enum class Scaling { none, linear, dynamic, llama3 };

  std::int64_t head_dim = 128;
  double theta = 10000;
  Scaling scaling = Scaling::none;
  double factor = 1;
  std::int64_t max_positions = 2048;                 // dynamic: length that needs no scaling
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  std::int64_t original_max_positions = 8192;        // llama3
};

/// Angle per position of each pair, [E/2] float32 on the CPU, for a row of `length` tokens (only
/// `dynamic` depends on it).
torch::Tensor inverse_frequencies(const RotaryConfig& config, std::int64_t length);

/// Cosines and sines of positions 0, 1, ..., kept and grown as longer rows come.
class Rotary {
 public:
  explicit Rotary(const RotaryConfig& config = {}) : config_(config) {}

  /// [T, E/2] each, for rows whose tokens have positions first[i], first[i] + 1, ...; `starts`
  /// [B+1].
  std::pair<torch::Tensor, torch::Tensor> rows(const std::vector<std::int64_t>& starts,
                                               const std::vector<std::int64_t>& first,
                                               const torch::TensorOptions& options);

  /// [B, E/2] each, of `positions` [B] int64 below `end` that only the device knows. Nothing is
  /// scaled by the length.
  std::pair<torch::Tensor, torch::Tensor> at(const torch::Tensor& positions, std::int64_t end,
                                             const torch::TensorOptions& options);

  /// Those of one position as bfloat16 numbers' bits, [E/2] each, which last until the next call.
  /// Nothing is allocated but to grow, and where `dynamic` scaling is at work.
  std::pair<std::span<const std::uint16_t>, std::span<const std::uint16_t>> bfloat16_row(
      std::int64_t position);

 private:
  void grow(std::int64_t longest, const torch::TensorOptions& options);
  bool is_scaled_by_length(std::int64_t length) const {
    return config_.scaling == RotaryConfig::Scaling::dynamic && length > config_.max_positions;
  }

  RotaryConfig config_;
  torch::Tensor cos_, sin_;                       // [P, E/2] of the last options asked for
  std::pair<torch::Tensor, torch::Tensor> last_;  // a scaled row
};

/// Rotates x [T, H, E] by cos, sin [T, E/2].
torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin);

}  // namespace llava::nn
