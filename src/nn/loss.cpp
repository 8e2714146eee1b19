#include "llava/nn/loss.h"

#include "llava/nn/gradients.h"

#include "cpu_training_rows.h"
#include "products.h"

#include <algorithm>

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kChunkBytes = 128 << 20;  // fp32 logits that may exist at a time

/// Losses [c] of rows [c, D] against tokens [c], and the gradients of their logits [c, V] where
/// wanted.
struct Chunk {
  Tensor losses, grad_logits;
};
Chunk cross_entropy(const Tensor& rows, const Tensor& weight, const Tensor& tokens,
                    torch::ScalarType wide, bool wants_gradients) {
  const auto made = product(rows, weight, {});
  if (has_cpu_training_rows(made)) return {cpu_cross_entropy(made, tokens, wants_gradients), made};
  auto logits = made.to(wide);
  const auto next = tokens.unsqueeze(1);                                // [c, 1]
  const auto log_sum = torch::logsumexp(logits, -1, /*keepdim=*/true);  // [c, 1]
  const auto losses = log_sum - logits.gather(1, next);                 // [c, 1]
  if (!wants_gradients) return {losses.squeeze(1), {}};
  auto grad = logits.sub_(log_sum).exp_();  // softmax
  grad.scatter_add_(1, next, torch::full_like(log_sum, -1));
  return {losses.squeeze(1), grad.to(rows.scalar_type())};
}

/// Adds the gradient of a weight by one chunk to that of those before, which is in `wide`: adding
/// rounded chunks would lose what one product keeps.
void add_chunk(Tensor& sum, const Tensor& grad, const Tensor& rows, bool is_only,
               torch::ScalarType wide) {
  if (is_only || grad.scalar_type() == wide) {
    sum = add_weight_gradient(sum, grad, rows);
  } else {
    const auto part = add_weight_gradient({}, grad, rows);
    sum = sum.defined() ? sum.add_(part) : part.to(wide);
  }
}

/// Cross-entropy, each and summed, of hidden [n, D] against tokens [n], and with `wants` its
/// gradients, chunk by chunk.
struct Sums {
  Tensor sum, each, grad_hidden, grad_weight;
};
Sums chunked_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& tokens,
                           std::int64_t chunk, bool wants_hidden, bool wants_weight) {
  const auto wide = hidden.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto n = hidden.size(0);
  Sums sums;
  sums.sum = torch::zeros({}, hidden.options().dtype(wide));
  sums.each = torch::empty({n}, sums.sum.options());
  if (wants_hidden) sums.grad_hidden = torch::empty_like(hidden);
  if (wants_weight && n == 0) sums.grad_weight = torch::zeros_like(weight);
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const auto end = std::min(n, begin + chunk);
    const auto rows = hidden.slice(0, begin, end);  // [c, D]
    const auto [losses, grad] = cross_entropy(rows, weight, tokens.slice(0, begin, end), wide,
                                              wants_hidden || wants_weight);
    sums.each.slice(0, begin, end).copy_(losses);
    sums.sum += losses.sum();
    if (wants_hidden) sums.grad_hidden.slice(0, begin, end).copy_(input_gradient(grad, weight));
    if (wants_weight) add_chunk(sums.grad_weight, grad, rows, /*is_only=*/n <= chunk, wide);
  }
  return sums;
}

/// Gradients are made in forward, while the logits are there, and scaled in backward.
struct TokenLossFunction : torch::autograd::Function<TokenLossFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                               const Tensor& tokens, std::int64_t chunk, bool is_recorded) {
    const bool wants_hidden = is_recorded && hidden.requires_grad();
    const bool wants_weight = is_recorded && weight.requires_grad();
    const PartOfTraining part(is_recorded);
    const auto sums =
        chunked_cross_entropy(hidden, weight, tokens, chunk, wants_hidden, wants_weight);
    context->save_for_backward(
        {sums.grad_hidden,
         sums.grad_weight.defined() ? sums.grad_weight.to(weight.scalar_type()) : Tensor(),
         weight});
    context->mark_non_differentiable({sums.each});
    return {sums.sum, sums.each};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto &grad_hidden = saved[0], &grad_weight = saved[1], &weight = saved[2];
    // A product with a 0-dimensional tensor keeps the scale in fp32 and the result's type.
    Tensor scaled_hidden, scaled;
    if (grad_hidden.defined()) scaled_hidden = grad_hidden * grads[0];
    if (grad_weight.defined() && weight.scalar_type() == torch::kFloat32 && adds_in_place(weight)) {
      weight.grad().addcmul_(grad_weight, grads[0]);
    } else if (grad_weight.defined()) {
      scaled = grad_weight * grads[0];
    }
    return {scaled_hidden, scaled, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Targets learned_targets(const torch::Tensor& labels, const std::vector<std::int64_t>& starts) {
  const auto on_cpu = labels.to(torch::kCPU, torch::kInt64).contiguous();
  const auto* label = on_cpu.const_data_ptr<std::int64_t>();
  std::vector<std::int64_t> positions, tokens;
  for (std::size_t row = 0; row + 1 < starts.size(); ++row) {
    for (auto t = starts[row]; t + 1 < starts[row + 1]; ++t) {
      if (label[t + 1] == kNotLearned) continue;
      positions.push_back(t);
      tokens.push_back(label[t + 1]);
    }
  }
  return {torch::tensor(positions, torch::kInt64), torch::tensor(tokens, torch::kInt64)};
}

TokenLoss token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                     const torch::Tensor& tokens, std::int64_t chunk) {
  const auto fitting = kChunkBytes / static_cast<std::int64_t>(sizeof(float)) / weight.size(0);
  const auto losses = TokenLossFunction::apply(
      hidden, weight, tokens.to(hidden.device(), /*non_blocking=*/true),
      std::max<std::int64_t>(1, chunk > 0 ? chunk : fitting), torch::GradMode::is_enabled());
  return {losses[0], tokens.size(0), losses[1]};
}

TokenLoss next_token_loss(const torch::Tensor& hidden, const torch::Tensor& weight,
                          const torch::Tensor& labels, const std::vector<std::int64_t>& starts,
                          std::int64_t chunk) {
  const auto targets = learned_targets(labels, starts);
  const auto positions = targets.positions.to(hidden.device(), /*non_blocking=*/true);
  return token_loss(hidden.index_select(0, positions), weight, targets.tokens, chunk);
}

}  // namespace llava::nn
