#include "llava/nn/rotary.h"

#include "cpu_rows.h"
#include "cpu_training_rows.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// theta^(-2i/E) in float32, in transformers' order of operations.
template <class Base>
Tensor plain_frequencies(const Base& theta, std::int64_t head_dim) {
  const auto exponents =
      torch::arange(0, head_dim, 2, torch::kFloat32) / static_cast<double>(head_dim);
  return 1.0 / torch::pow(theta, exponents);
}

/// Source: transformers 5.24, modeling_rope_utils.py, _compute_dynamic_ntk_parameters; the base is
/// a float32 number there, since the length is a tensor.
Tensor dynamic_frequencies(const RotaryConfig& config, std::int64_t length) {
  if (length <= config.max_positions) return plain_frequencies(config.theta, config.head_dim);
  const auto dim = static_cast<double>(config.head_dim);
  const auto stretch =
      config.factor * torch::tensor(length) / config.max_positions - (config.factor - 1);
  return plain_frequencies(config.theta * torch::pow(stretch, dim / (dim - 2)), config.head_dim);
}

/// Source: transformers 5.24, modeling_rope_utils.py, _compute_llama3_parameters.
Tensor llama3_frequencies(const RotaryConfig& config) {
  const auto plain = plain_frequencies(config.theta, config.head_dim);
  const auto old_length = static_cast<double>(config.original_max_positions);
  const double longest = old_length / config.low_freq_factor;
  const double shortest = old_length / config.high_freq_factor;
  const auto wavelength = 2 * std::numbers::pi / plain;
  const auto slowed = torch::where(wavelength > longest, plain / config.factor, plain);
  const auto smooth = (old_length / wavelength - config.low_freq_factor) /
                      (config.high_freq_factor - config.low_freq_factor);
  const auto between = (1 - smooth) * slowed / config.factor + smooth * slowed;
  return torch::where((wavelength >= shortest) & (wavelength <= longest), between, slowed);
}

/// x [T, H, E] turned by the angles, or back when `sign` is -1. Every product and sum is rounded to
/// x's type, as transformers does.
Tensor turn_by_parts(const Tensor& x, const Tensor& cos, const Tensor& sin, double sign) {
  const auto half = x.size(-1) / 2;
  const auto c = cos.unsqueeze(1), s = sin.unsqueeze(1);  // [T, 1, E/2]
  const auto x1 = x.narrow(-1, 0, half), x2 = x.narrow(-1, half, half);
  auto out = torch::empty(x.sizes(), x.options());
  auto out1 = out.narrow(-1, 0, half), out2 = out.narrow(-1, half, half);
  torch::mul_out(out1, x1, c).sub_(x2 * s, sign);
  torch::mul_out(out2, x2, c).add_(x1 * s, sign);
  return out;
}

Tensor turn(const Tensor& x, const Tensor& cos, const Tensor& sin, double sign, bool is_own) {
  return is_own ? cpu_turn(x, cos, sin, sign) : turn_by_parts(x, cos, sin, sign);
}

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos,
                        const Tensor& sin, bool is_own) {
    context->save_for_backward({cos, sin});
    context->saved_data["is_own"] = is_own;
    return turn(x, cos, sin, 1, is_own);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const bool is_own = context->saved_data["is_own"].toBool();
    return {turn(grads[0], saved[0], saved[1], -1, is_own), Tensor(), Tensor(), Tensor()};
  }
};

/// Cosines and sines of positions [first, end): [end - first, E/2] float32.
std::pair<Tensor, Tensor> table(const Tensor& frequencies, std::int64_t first, std::int64_t end) {
  const auto angles = torch::arange(first, end, torch::kFloat32).unsqueeze(1) * frequencies;
  return {angles.cos(), angles.sin()};
}

}  // namespace

torch::Tensor inverse_frequencies(const RotaryConfig& config, std::int64_t length) {
  switch (config.scaling) {
    case RotaryConfig::Scaling::none: break;
    case RotaryConfig::Scaling::linear:
      return plain_frequencies(config.theta, config.head_dim) / config.factor;
    case RotaryConfig::Scaling::dynamic: return dynamic_frequencies(config, length);
    case RotaryConfig::Scaling::llama3: return llama3_frequencies(config);
  }
  return plain_frequencies(config.theta, config.head_dim);
}

void Rotary::grow(std::int64_t longest, const torch::TensorOptions& options) {
  if (cos_.defined() && cos_.size(0) >= longest && cos_.device() == options.device() &&
      cos_.dtype() == options.dtype())
    return;
  const std::int64_t grown = std::max<std::int64_t>(256, longest + longest / 2);
  const auto [cos, sin] = table(inverse_frequencies(config_, 0), 0, grown);
  cos_ = cos.to(options);
  sin_ = sin.to(options);
}

std::pair<torch::Tensor, torch::Tensor> Rotary::at(const torch::Tensor& positions, std::int64_t end,
                                                   const torch::TensorOptions& options) {
  grow(end, options);
  return {cos_.index_select(0, positions), sin_.index_select(0, positions)};
}

std::pair<std::span<const std::uint16_t>, std::span<const std::uint16_t>> Rotary::bfloat16_row(
    std::int64_t position) {
  const auto half = config_.head_dim / 2;
  const auto row = [half](const Tensor& all, std::int64_t i) -> std::span<const std::uint16_t> {
    return {bfloat16_bits(all) + i * half, static_cast<std::size_t>(half)};
  };
  if (is_scaled_by_length(position + 1)) {
    last_ = rows({0, 1}, {position}, torch::kBFloat16);
    return {row(last_.first, 0), row(last_.second, 0)};
  }
  grow(position + 1, torch::kBFloat16);
  return {row(cos_, position), row(sin_, position)};
}

std::pair<torch::Tensor, torch::Tensor> Rotary::rows(const std::vector<std::int64_t>& starts,
                                                     const std::vector<std::int64_t>& first,
                                                     const torch::TensorOptions& options) {
  std::int64_t longest = 0;
  for (std::size_t row = 0; row < first.size(); ++row)
    longest = std::max(longest, first[row] + starts[row + 1] - starts[row]);
  grow(longest, options);

  std::vector<Tensor> cosines, sines;
  for (std::size_t row = 0; row < first.size(); ++row) {
    const auto begin = first[row], end = begin + starts[row + 1] - starts[row];
    if (is_scaled_by_length(end)) {
      const auto [cos, sin] = table(inverse_frequencies(config_, end), begin, end);
      cosines.push_back(cos.to(options));
      sines.push_back(sin.to(options));
    } else {
      cosines.push_back(cos_.slice(0, begin, end));
      sines.push_back(sin_.slice(0, begin, end));
    }
  }
  if (cosines.size() == 1) return {cosines[0], sines[0]};
  return {torch::cat(cosines), torch::cat(sines)};
}

torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  if (has_cpu_kernels(x)) return cpu_rotate(x, cos, sin);
  const bool is_own = has_cpu_training_rows(x) && cos.scalar_type() == x.scalar_type();
  return RotateFunction::apply(x, cos, sin, is_own);
}

}  // namespace llava::nn
