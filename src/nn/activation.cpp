#include "llava/nn/activation.h"

#include "cpu_rows.h"

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& gate, const Tensor& up) {
    context->save_for_backward({gate, up});
    return torch::silu(gate).mul_(up);
  }

  // With s = sigmoid(gate): d silu = s * (1 + gate * (1 - s)).
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    Tensor grad_gate, grad_up;
    if (context->needs_input_grad(0)) grad_gate = at::silu_backward(grads[0] * up, gate);
    if (context->needs_input_grad(1)) grad_up = torch::silu(gate).mul_(grads[0]);
    return {grad_gate, grad_up};
  }
};

}  // namespace

torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up) {
  return has_cpu_kernels(gate) ? cpu_swiglu(gate, up) : SwigluFunction::apply(gate, up);
}

torch::Tensor quick_gelu(const torch::Tensor& x) {
  return has_cpu_kernels(x) ? cpu_quick_gelu(x) : x * torch::sigmoid(1.702 * x);
}

}  // namespace llava::nn
