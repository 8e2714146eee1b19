#include "llava/nn/recompute.h"

#include "cpu_rows.h"
#include "inference.h"
#include "products.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <algorithm>
#include <mutex>

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Block = std::function<Tensor(const Tensor&)>;

/// States of the generators that a block may draw from: the CPU's, and the device's.
struct RandomState {
  Tensor cpu, device;
};

RandomState random_state(torch::Device device) {
  const auto state_of = [](at::Generator generator) {
    const std::scoped_lock lock(generator.mutex());
    return generator.get_state();
  };
  RandomState state;
  state.cpu = state_of(at::detail::getDefaultCPUGenerator());
  if (!device.is_cpu()) state.device = state_of(at::globalContext().defaultGenerator(device));
  return state;
}

void set_random_state(const RandomState& state, torch::Device device) {
  const auto set = [](at::Generator generator, const Tensor& tensor) {
    const std::scoped_lock lock(generator.mutex());
    generator.set_state(tensor);
  };
  set(at::detail::getDefaultCPUGenerator(), state.cpu);
  if (state.device.defined()) set(at::globalContext().defaultGenerator(device), state.device);
}

/// What backward needs to run a block again.
struct Again : torch::CustomClassHolder {
  Again(Block block, RandomState random, bool x_needs_grad)
      : block(std::move(block)), random(std::move(random)), x_needs_grad(x_needs_grad) {}
  Block block;
  RandomState random;
  bool x_needs_grad;
};

struct RecomputeFunction : torch::autograd::Function<RecomputeFunction> {
  /// `anchor` needs a gradient, so that backward runs even if x does not.
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*anchor*/,
                        const Block& block) {
    context->saved_data["again"] = c10::IValue::make_capsule(
        c10::make_intrusive<Again>(block, random_state(x.device()), x.requires_grad()));
    context->save_for_backward({x});
    const RunsAgain again;
    return block(x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto capsule = context->saved_data["again"].toCapsule();
    const auto& again = static_cast<const Again&>(*capsule);
    const auto x = context->get_saved_variables()[0].detach().requires_grad_(again.x_needs_grad);
    const auto device = x.device();
    const auto now = random_state(device);
    set_random_state(again.random, device);
    Tensor y;
    {
      const at::AutoGradMode recording(true);
      y = again.block(x);
    }
    set_random_state(now, device);
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), Tensor(), Tensor()};
  }
};

/// What backward needs to make the input of some products again.
struct Plan : torch::CustomClassHolder {
  Made::Make make;
  std::size_t num_inputs = 0;
  std::vector<bool> has_bias;    // of each product
  std::vector<bool> needs_grad;  // of each tensor of the list below
};

/// Products of a remade input. `tensors`: its inputs, then each weight with its bias behind it.
struct RemadeLinears : torch::autograd::Function<RemadeLinears> {
  static variable_list forward(AutogradContext* context, at::TensorList tensors,
                               const c10::intrusive_ptr<Plan>& plan) {
    for (const auto& tensor : tensors) plan->needs_grad.push_back(tensor.requires_grad());
    const auto inputs = std::vector<Tensor>(
        tensors.begin(), tensors.begin() + static_cast<std::ptrdiff_t>(plan->num_inputs));
    const RunsAgain again;
    const auto x = plan->make(inputs);
    variable_list products;
    auto next = plan->num_inputs;
    for (const bool has_bias : plan->has_bias) {
      const auto& weight = tensors[next++];
      products.push_back(linear(x, weight, has_bias ? tensors[next++] : Tensor()));
    }
    context->saved_data["plan"] = c10::IValue::make_capsule(plan);
    context->save_for_backward(tensors.vec());
    return products;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto capsule = context->saved_data["plan"].toCapsule();
    const auto& plan = static_cast<const Plan&>(*capsule);
    const auto tensors = context->get_saved_variables();
    std::vector<Tensor> inputs;
    for (std::size_t i = 0; i < plan.num_inputs; ++i)
      inputs.push_back(tensors[i].detach().requires_grad_(plan.needs_grad[i]));
    Tensor x;
    {
      const at::AutoGradMode recording(true);
      x = plan.make(inputs);
    }
    variable_list found(tensors.size() + 1);
    Tensor grad_x;
    auto next = plan.num_inputs;
    for (std::size_t i = 0; i < plan.has_bias.size(); ++i) {
      const auto& grad = grads[i];
      if (x.requires_grad()) {
        const auto part = input_gradient(grad, tensors[next]);
        grad_x = grad_x.defined() ? grad_x.add_(part) : part;
      }
      if (plan.needs_grad[next]) found[next] = weight_gradient(grad, x.detach(), tensors[next]);
      ++next;
      if (!plan.has_bias[i]) continue;
      if (plan.needs_grad[next]) found[next] = grad.sum(0);
      ++next;
    }
    if (x.requires_grad()) torch::autograd::backward({x}, {grad_x});
    for (std::size_t i = 0; i < plan.num_inputs; ++i) found[i] = inputs[i].grad();
    return found;
  }
};

/// Whether a Linear's products can do without its input: no dropout draws from it, no cast copies
/// it.
bool can_remake(const Linear& linear) {
  if (linear->packed) return false;
  if (!linear->has_lora()) return true;
  return (linear->lora_dropout == 0 || !linear->is_training()) &&
         linear->lora_A->weight.scalar_type() == linear->weight.scalar_type();
}

/// Whether packed weights can be gone through in one pass.
bool can_multiply_together(const std::vector<Linear>& linears) {
  return is_inference() && std::all_of(linears.begin(), linears.end(), [&](const Linear& linear) {
           return linear->packed && !linear->has_lora() &&
                  linear->packed->packing() == linears[0]->packed->packing();
         });
}

std::vector<Tensor> multiply_together(const std::vector<Linear>& linears, const Tensor& x) {
  std::vector<const PackedWeight*> weights;
  std::vector<Tensor> biases;
  for (const auto& linear : linears) {
    weights.push_back(linear->packed.get());
    biases.push_back(linear->bias);
  }
  return multiply(x, weights, biases);
}

/// Whether what comes behind the products of packed weights can be done with them.
bool can_finish(const std::vector<Linear>& linears, const Tensor& x) {
  return has_cpu_kernels(x) && x.dim() == 2 && can_multiply_together(linears);
}

Tensor made(const Made& input) { return input.make ? input.make(input.inputs) : input.inputs[0]; }

}  // namespace

torch::Tensor gated_linears(const Linear& gate, const Linear& up, const Made& input) {
  if (!can_finish({gate, up}, input.inputs[0])) return {};
  return multiply_gated(made(input), *gate->packed, gate->bias, *up->packed, up->bias);
}

torch::Tensor add_linear(const torch::Tensor& residual, const Linear& linear, const Made& input) {
  if (can_finish({linear}, input.inputs[0]))
    return multiply_and_add(made(input), *linear->packed, linear->bias, residual);
  return residual + linears({linear}, input)[0];
}

std::vector<torch::Tensor> linears(const std::vector<Linear>& linears, const Made& input) {
  const bool remakes = !input.is_kept && torch::GradMode::is_enabled() &&
                       std::all_of(linears.begin(), linears.end(), can_remake);
  std::vector<Tensor> results;
  if (!remakes) {
    const auto x = made(input);
    if (can_multiply_together(linears)) return multiply_together(linears, x);
    for (auto linear : linears) results.push_back(linear(x));
    return results;
  }
  auto plan = c10::make_intrusive<Plan>();
  plan->make = input.make;
  plan->num_inputs = input.inputs.size();
  auto tensors = input.inputs;
  const auto add = [&](const LinearImpl& linear) {
    tensors.push_back(linear.weight);
    if (linear.bias.defined()) tensors.push_back(linear.bias);
    plan->has_bias.push_back(linear.bias.defined());
  };
  for (const auto& linear : linears) {
    add(*linear);
    if (linear->has_lora()) add(*linear->lora_A);
  }
  const auto products = RemadeLinears::apply(at::TensorList(tensors), plan);
  std::size_t next = 0;
  for (const auto& linear : linears) {
    auto y = products[next++];
    if (linear->has_lora()) y = y + linear->lora_B->forward(products[next++]) * linear->lora_scale;
    results.push_back(y);
  }
  return results;
}

torch::Tensor recompute(const std::function<torch::Tensor(const torch::Tensor&)>& block,
                        const torch::Tensor& x, bool is_trainable) {
  if (!torch::GradMode::is_enabled() || (!is_trainable && !x.requires_grad())) return block(x);
  const auto anchor = torch::empty({0}, torch::requires_grad());
  return RecomputeFunction::apply(x, anchor, block);
}

bool is_trainable(const torch::nn::Module& module) {
  const auto parameters = module.parameters();
  return std::any_of(parameters.begin(), parameters.end(),
                     [](const Tensor& parameter) { return parameter.requires_grad(); });
}

}  // namespace llava::nn
