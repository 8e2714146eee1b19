#include "llava/nn/norm.h"

#include "cpu_rows.h"
#include "cpu_training_rows.h"

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Statistics are made in fp32 (fp64 for fp64 input).
torch::ScalarType wide(torch::ScalarType type) {
  return type == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

/// One over the root of the mean square of each row: [..., D] -> [..., 1].
Tensor inverse_rms(const Tensor& x_wide, double eps) {
  return x_wide.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
}

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, double eps,
                        bool is_own) {
    context->saved_data["is_own"] = is_own;
    if (is_own) {
      const auto [y, scale] = cpu_training_rms_norm(x, weight, eps);
      context->save_for_backward({x, weight, scale});
      return y;
    }
    const auto x_wide = x.to(wide(x.scalar_type()));
    const auto scale = inverse_rms(x_wide, eps);
    context->save_for_backward({x, weight, scale});
    return weight * (x_wide * scale).to(x.scalar_type());
  }

  // With n = x * scale: dx = scale * (dn - n * mean(dn * n)), dn = dy * weight.
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &scale = saved[2];
    if (context->saved_data["is_own"].toBool()) {
      const auto found = cpu_rms_norm_gradients(
          x, weight, scale, grads[0], context->needs_input_grad(0), context->needs_input_grad(1));
      return {found.x, found.weight, Tensor(), Tensor()};
    }
    const auto type = scale.scalar_type();
    const auto normed = x.to(type) * scale;
    const auto grad = grads[0].to(type);
    Tensor grad_x, grad_weight;
    if (context->needs_input_grad(1))
      grad_weight = (grad * normed.to(x.scalar_type()))
                        .reshape({-1, weight.size(0)})
                        .sum(0)
                        .to(weight.scalar_type());
    if (context->needs_input_grad(0)) {
      auto grad_normed = grad * weight;
      const auto mean = (grad_normed * normed).mean(-1, /*keepdim=*/true);
      grad_x = grad_normed.sub_(normed * mean).mul_(scale).to(x.scalar_type());
    }
    return {grad_x, grad_weight, Tensor(), Tensor()};
  }
};

}  // namespace

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const bool is_one_type = weight.scalar_type() == x.scalar_type();
  if (has_cpu_kernels(x) && is_one_type) return cpu_rms_norm(x, weight, eps);
  return RmsNormFunction::apply(x, weight, eps, has_cpu_training_rows(x) && is_one_type);
}

RmsNormImpl::RmsNormImpl(std::int64_t width, double eps, const torch::TensorOptions& options)
    : eps(eps) {
  weight = register_parameter("weight", torch::empty({width}, options));
}

LayerNormImpl::LayerNormImpl(std::int64_t width, double eps, const torch::TensorOptions& options)
    : eps(eps) {
  weight = register_parameter("weight", torch::empty({width}, options));
  bias = register_parameter("bias", torch::empty({width}, options));
}

torch::Tensor LayerNormImpl::forward(const torch::Tensor& x) {
  return torch::layer_norm(x, {weight.size(0)}, weight, bias, eps);
}

}  // namespace llava::nn
