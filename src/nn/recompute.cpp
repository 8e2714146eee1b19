#include "llava/nn/recompute.h"

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

}  // namespace

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
