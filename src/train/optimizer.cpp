#include "llava/train/optimizer.h"

#include "eight_bit.h"
#include "llava/base/config.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>

#include <map>

namespace llava::train {
namespace {

// Gradients of masters are widened to fp32 this many values at a time, so that they never exist all
// at once in fp32.
constexpr std::int64_t kSlotValues = 1 << 26;

torch::Tensor gradient_of(const torch::Tensor& parameter) {
  auto& gradient = const_cast<torch::Tensor&>(parameter).mutable_grad();
  if (!gradient.defined()) gradient = torch::zeros_like(parameter.detach());
  return gradient;
}

}  // namespace

void check(const OptimizerConfig& config) {
  const std::vector<std::string> names{"adamw_torch_fused", "adamw_torch", "adamw_8bit"};
  expect(std::find(names.begin(), names.end(), config.optim) != names.end(), Fault::usage,
         "--optim: there is no optimizer \"", config.optim, "\"", suggestion(config.optim, names),
         "; take adamw_torch_fused or adamw_8bit");
  const auto is_share = [](double x) { return x >= 0 && x < 1; };
  expect(is_share(config.adam_beta1) && is_share(config.adam_beta2), Fault::usage,
         "--adam_beta1 and --adam_beta2 must lie in [0, 1), found ", config.adam_beta1, " and ",
         config.adam_beta2);
  expect(config.adam_epsilon >= 0, Fault::usage, "--adam_epsilon: ", config.adam_epsilon,
         " is negative");
  expect(config.weight_decay >= 0, Fault::usage, "--weight_decay: ", config.weight_decay,
         " is negative");
  expect(config.max_grad_norm >= 0, Fault::usage, "--max_grad_norm: ", config.max_grad_norm,
         " is negative; 0 turns clipping off");
}

Optimizer::Optimizer(std::vector<ParameterGroup> groups, const OptimizerConfig& config)
    : groups_(std::move(groups)), config_(config), eight_bit_(config.optim == "adamw_8bit") {
  torch::NoGradGuard no_grad;
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    // The slot of each kind of tensor that still has room.
    std::map<std::pair<torch::ScalarType, std::string>, std::pair<std::size_t, std::int64_t>> open;
    for (const auto& [name, parameter] : groups_[group].parameters) {
      auto& [index, values] = open[{parameter.scalar_type(), parameter.device().str()}];
      if (values == 0 || values + parameter.numel() > kSlotValues) {
        index = slots_.size();
        values = 0;
        slots_.emplace_back().group = group;
      }
      values += parameter.numel();
      Slot& slot = slots_[index];
      slot.has_masters = parameter.scalar_type() != torch::kFloat32;
      slot.names.push_back(name);
      slot.parameters.push_back(parameter);
      slot.masters.push_back(slot.has_masters ? parameter.detach().to(torch::kFloat32)
                                              : parameter.detach());
      const auto& master = slot.masters.back();
      const auto zeros = [&](torch::ScalarType type) {
        return torch::zeros(master.sizes(), master.options().dtype(type));
      };
      slot.exp_avgs.push_back(zeros(eight_bit_ ? torch::kInt8 : torch::kFloat32));
      slot.exp_avg_sqs.push_back(zeros(eight_bit_ ? torch::kUInt8 : torch::kFloat32));
      if (!eight_bit_) continue;
      slot.avg_scales.push_back(torch::zeros({moment_blocks(master.numel())}, master.options()));
      slot.sq_scales.push_back(torch::zeros({moment_blocks(master.numel())}, master.options()));
    }
  }
  // A rank may own nothing.
  step_ = torch::zeros(
      {}, slots_.empty() ? torch::TensorOptions(torch::kFloat32) : slots_[0].masters[0].options());
}

torch::Tensor Optimizer::gradient_norm() {
  torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> norms;
  for (const auto& slot : slots_) {
    std::vector<torch::Tensor> gradients;
    for (const auto& parameter : slot.parameters) gradients.push_back(gradient_of(parameter));
    for (const auto& norm : at::_foreach_norm(gradients, 2, torch::kFloat32))
      norms.push_back(norm.to(step_.device()));
  }
  return norms.empty() ? torch::zeros_like(step_) : torch::stack(norms).norm();
}

void Optimizer::step(double rate_factor, const torch::Tensor& norm, const torch::Tensor& skip) {
  torch::NoGradGuard no_grad;
  step_.add_(1 - skip);
  Update one{rate_factor, {}, skip};
  // As torch.nn.utils.clip_grad_norm_ does it.
  if (config_.max_grad_norm > 0)
    one.gradient_scale = (config_.max_grad_norm / (norm + 1e-6)).clamp_max_(1.0);
  for (auto& slot : slots_) update(slot, groups_[slot.group], one);
}

void Optimizer::update(Slot& slot, const ParameterGroup& group, const Update& update) {
  std::vector<torch::Tensor> gradients;
  for (const auto& parameter : slot.parameters)
    gradients.push_back(gradient_of(parameter).to(torch::kFloat32));
  const auto device = slot.masters[0].device();
  if (update.gradient_scale.defined())
    at::_foreach_mul_(gradients, update.gradient_scale.to(device));

  const double rate = group.learning_rate * update.rate_factor;
  const auto step = step_.to(device), no_change = update.skip.to(device);
  if (eight_bit_) {
    const AdamStep adam{
        rate, config_.adam_beta1, config_.adam_beta2, config_.adam_epsilon, group.weight_decay,
        step, no_change};
    for (std::size_t i = 0; i < gradients.size(); ++i)
      adam_8bit_step(adam, gradients[i], slot.masters[i], {slot.exp_avgs[i], slot.avg_scales[i]},
                     {slot.exp_avg_sqs[i], slot.sq_scales[i]});
  } else {
    const std::vector<torch::Tensor> steps(gradients.size(), step);
    at::_fused_adamw_(slot.masters, gradients, slot.exp_avgs, slot.exp_avg_sqs, {}, steps, rate,
                      config_.adam_beta1, config_.adam_beta2, group.weight_decay,
                      config_.adam_epsilon, /*amsgrad=*/false, /*maximize=*/false,
                      /*grad_scale=*/{}, /*found_inf=*/no_change);
  }
  if (slot.has_masters) at::_foreach_copy_(slot.parameters, slot.masters);
}

void Optimizer::zero_grad() {
  for (auto& slot : slots_)
    for (auto& parameter : slot.parameters) parameter.mutable_grad().reset();
}

std::vector<std::pair<std::string, torch::Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, torch::Tensor>> state{{"step", step_}};
  for (const auto& slot : slots_) {
    for (std::size_t i = 0; i < slot.names.size(); ++i) {
      const std::string& name = slot.names[i];
      state.emplace_back("weight." + name, slot.masters[i]);
      state.emplace_back("exp_avg." + name, slot.exp_avgs[i]);
      state.emplace_back("exp_avg_sq." + name, slot.exp_avg_sqs[i]);
      if (!eight_bit_) continue;
      state.emplace_back("exp_avg_scale." + name, slot.avg_scales[i]);
      state.emplace_back("exp_avg_sq_scale." + name, slot.sq_scales[i]);
    }
  }
  return state;
}

void Optimizer::weights_from_masters() {
  torch::NoGradGuard no_grad;
  for (auto& slot : slots_)
    if (slot.has_masters) at::_foreach_copy_(slot.parameters, slot.masters);
}

std::int64_t Optimizer::state_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : state()) bytes += static_cast<std::int64_t>(tensor.nbytes());
  for (const auto& slot : slots_)
    if (!slot.has_masters)
      for (const auto& master : slot.masters) bytes -= static_cast<std::int64_t>(master.nbytes());
  return bytes;
}

}  // namespace llava::train
