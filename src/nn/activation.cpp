#include "llava/nn/activation.h"

#include "cpu_rows.h"
#include "cpu_training_rows.h"

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& gate, const Tensor& up,
                        bool is_own) {
    context->save_for_backward({gate, up});
    context->saved_data["is_own"] = is_own;
    if (is_own) return cpu_training_swiglu(gate, up);
    return torch::silu(gate).mul_(up);
  }

  // With s = sigmoid(gate): d silu = s * (1 + gate * (1 - s)).
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    if (context->saved_data["is_own"].toBool()) {
      const auto found = cpu_swiglu_gradients(gate, up, grads[0], context->needs_input_grad(0),
                                              context->needs_input_grad(1));
      return {found.first, found.second, Tensor()};
    }
    Tensor grad_gate, grad_up;
    if (context->needs_input_grad(0)) grad_gate = at::silu_backward(grads[0] * up, gate);
    if (context->needs_input_grad(1)) grad_up = torch::silu(gate).mul_(grads[0]);
    return {grad_gate, grad_up, Tensor()};
  }
};

}  // namespace

torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up) {
  if (has_cpu_kernels(gate)) return cpu_swiglu(gate, up);
  return SwigluFunction::apply(gate, up, has_cpu_training_rows(gate));
}

torch::Tensor quick_gelu(const torch::Tensor& x) {
  return has_cpu_kernels(x) ? cpu_quick_gelu(x) : x * torch::sigmoid(1.702 * x);
}

}  // namespace llava::nn
