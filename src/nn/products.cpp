#include "products.h"

#include "cpu_products.h"
#include "inference.h"
#include "llava/nn/gradients.h"

#include <torch/csrc/autograd/variable.h>

#include <optional>

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor as_rows(const Tensor& x) { return x.reshape({-1, x.size(-1)}); }

struct ProductFunction : torch::autograd::Function<ProductFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    context->save_for_backward({x, weight});
    context->saved_data["has_bias"] = bias.has_value();
    auto shape = x.sizes().vec();
    shape.back() = weight.size(0);
    return cpu_product(as_rows(x), weight, bias.value_or(Tensor())).view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const auto grad = as_rows(grads[0]);
    Tensor grad_x, grad_weight, grad_bias;
    if (context->needs_input_grad(0)) grad_x = input_gradient(grad, weight).view(x.sizes());
    if (context->needs_input_grad(1)) grad_weight = weight_gradient(grad, as_rows(x), weight);
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2))
      grad_bias = grad.sum(0);
    return {grad_x, grad_weight, grad_bias};
  }
};

}  // namespace

torch::Tensor product(const torch::Tensor& x, const torch::Tensor& weight,
                      const torch::Tensor& bias) {
  // Inference keeps LibTorch's for every number of rows: a row alone is then rounded like one among
  // others. Against fp64 both are equally far off.
  if (!is_part_of_training() || !has_cpu_products(x, weight)) return torch::linear(x, weight, bias);
  return ProductFunction::apply(x, weight,
                                bias.defined() ? std::optional<Tensor>(bias) : std::nullopt);
}

torch::Tensor input_gradient(const torch::Tensor& grad, const torch::Tensor& weight) {
  return has_cpu_products(grad, weight) ? cpu_input_gradient(grad, weight)
                                        : torch::matmul(grad, weight);
}

torch::Tensor add_weight_gradient(torch::Tensor sum, const torch::Tensor& grad,
                                  const torch::Tensor& x) {
  if (has_cpu_weight_gradient(grad, x)) return cpu_weight_gradient(grad, x, std::move(sum));
  return sum.defined() ? sum.addmm_(grad.t(), x) : torch::matmul(grad.t(), x);
}

torch::Tensor weight_gradient(const torch::Tensor& grad, const torch::Tensor& x,
                              const torch::Tensor& weight) {
  if (!adds_in_place(weight)) return add_weight_gradient({}, grad, x);
  add_weight_gradient(weight.grad(), grad, x);
  return {};
}

bool adds_in_place(const torch::Tensor& weight) {
  return AddsGradientsInPlace::is_on() && weight.is_leaf() && weight.grad().defined() &&
         weight.grad().scalar_type() == weight.scalar_type() && weight.grad().is_contiguous() &&
         !torch::autograd::impl::post_acc_grad_hooks(weight);
}

}  // namespace llava::nn
