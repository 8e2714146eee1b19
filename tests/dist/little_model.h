// A model small enough to train in a test, with all that makes distributed training hard: parts
// that only some rows use, frozen weights, two dtypes, layers with callbacks, recomputation.
#pragma once

#include "llava/dist/gradient_sync.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

namespace llava::dist::testing {

using Block = std::function<torch::Tensor(const torch::Tensor&)>;

struct Again : torch::CustomClassHolder {
  explicit Again(Block block) : block(std::move(block)) {}
  Block block;
};

/// Runs the block again in backward.
struct Recomputed : torch::autograd::Function<Recomputed> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor&, const Block& block) {
    context->save_for_backward({x});
    context->saved_data["again"] = c10::IValue::make_capsule(c10::make_intrusive<Again>(block));
    return block(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto x = context->get_saved_variables()[0].detach().requires_grad_(true);
    const auto capsule = context->saved_data["again"].toCapsule();
    torch::Tensor y;
    {
      const at::AutoGradMode recording(true);
      y = static_cast<const Again&>(*capsule).block(x);
    }
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), torch::Tensor(), torch::Tensor()};
  }
};

inline torch::Tensor random(std::uint64_t seed, torch::IntArrayRef sizes) {
  return torch::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed));
}

constexpr std::int64_t kWidth = 24, kLayers = 4, kRows = 8;

struct LittleModel {
  /// The same weights for the same seed. Frozen: one matrix of each layer.
  explicit LittleModel(std::uint64_t seed, bool layers_learn = true);

  /// Sum over the rows [begin, end) of step `step`'s batch of kRows of a loss; rows 0 and 1 alone
  /// use the projector.
  torch::Tensor loss(std::int64_t step, std::int64_t begin, std::int64_t end) const;

  NamedTensors parameters;           // by name, in order of use
  std::vector<std::int64_t> layers;  // of each parameter
  bool recompute = false;
  GradientSync* sync = nullptr;  // is told of layers

  Weights weights() const { return {parameters, layers}; }
  torch::Tensor at(const std::string& name) const;
};

/// Adam on tensors with gradients, as an optimizer that knows of no ranks.
class Adam {
 public:
  explicit Adam(NamedTensors parameters);
  torch::Tensor gradient_norm() const;
  void step(double scale);
  std::int64_t state_bytes() const;

 private:
  NamedTensors parameters_;
  std::vector<torch::Tensor> means_, squares_;
  int steps_ = 0;
};

struct Training {
  SyncConfig sync = {};
  std::int64_t steps = 20;
  std::int64_t accumulation = 1;
  bool recompute = false;
  bool layers_learn = true;
};

inline LittleModel::LittleModel(std::uint64_t seed, bool layers_learn) {
  const auto add = [&](const std::string& name, torch::IntArrayRef sizes, std::int64_t layer,
                       bool learns, torch::ScalarType type = torch::kFloat32) {
    auto values = (random(seed + parameters.size(), sizes) / std::sqrt(double{kWidth})).to(type);
    parameters.emplace_back(name, values.requires_grad_(learns));
    layers.push_back(layer);
  };
  add("projector", {kWidth, kWidth}, -1, true);
  add("embed", {7, kWidth}, -1, true);
  for (std::int64_t i = 0; i < kLayers; ++i) {
    const auto name = "layers." + std::to_string(i) + ".";
    add(name + "frozen", {kWidth, kWidth}, i, false);
    add(name + "weight", {kWidth, kWidth}, i, layers_learn);
    add(name + "bias", {kWidth}, i, layers_learn);
    add(name + "scale", {1}, i, layers_learn, torch::kFloat64);  // another dtype
  }
  add("norm", {kWidth}, -1, true);
  add("head", {1000, kWidth}, -1, true);  // larger than a rank's part of a small bucket
}

inline torch::Tensor LittleModel::at(const std::string& name) const {
  for (const auto& [known, tensor] : parameters)
    if (known == name) return tensor;
  throw std::logic_error(name);
}

inline torch::Tensor LittleModel::loss(std::int64_t step, std::int64_t begin,
                                       std::int64_t end) const {
  const auto inputs = random(1000 + static_cast<std::uint64_t>(step), {kRows, kWidth});
  auto x = inputs.slice(0, begin, end) + at("embed").index_select(0, torch::arange(begin, end) % 7);
  if (begin < 2) {
    const auto pictures = std::min<std::int64_t>(2, end) - begin;
    const auto seen = torch::matmul(inputs.slice(0, begin, begin + pictures), at("projector"));
    x = torch::cat({x.slice(0, 0, pictures) + seen, x.slice(0, pictures)});
  }
  for (std::int64_t i = 0; i < kLayers; ++i) {
    const Block block = [this, i](const torch::Tensor& y) {
      const auto name = "layers." + std::to_string(i) + ".";
      const auto inner = torch::tanh(torch::matmul(y, at(name + "frozen")));
      return y + torch::addmm(at(name + "bias"), inner, at(name + "weight")) *
                     (at(name + "scale") + 1).to(torch::kFloat32);
    };
    if (sync) sync->before_layer(i, x);
    x = recompute && torch::GradMode::is_enabled()
            ? Recomputed::apply(x, torch::empty({0}, torch::requires_grad()), block)
            : block(x);
    if (sync) sync->after_layer(i, x);
  }
  const auto logits = torch::matmul(x * at("norm"), at("head").t());
  return torch::logsumexp(logits, -1).square().sum();
}

inline Adam::Adam(NamedTensors parameters) : parameters_(std::move(parameters)) {
  for (const auto& [name, parameter] : parameters_) {
    means_.push_back(torch::zeros_like(parameter.detach()));
    squares_.push_back(torch::zeros_like(parameter.detach()));
  }
}

inline torch::Tensor Adam::gradient_norm() const {
  auto sum = torch::zeros({});
  for (const auto& [name, parameter] : parameters_)
    sum += parameter.grad().to(torch::kFloat32).square().sum();
  return sum.sqrt();
}

inline void Adam::step(double scale) {
  torch::NoGradGuard no_grad;
  ++steps_;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto gradient = parameters_[i].second.grad().to(means_[i].scalar_type()) * scale;
    means_[i].mul_(0.9).add_(gradient, 0.1);
    squares_[i].mul_(0.99).addcmul_(gradient, gradient, 0.01);
    const auto mean = means_[i] / (1 - std::pow(0.9, steps_));
    const auto square = squares_[i] / (1 - std::pow(0.99, steps_));
    // eps keeps Adam from turning rounding errors of tiny gradients into whole steps
    parameters_[i].second.detach().sub_(0.01 * mean / (square.sqrt() + 1e-3));
  }
}

inline std::int64_t Adam::state_bytes() const {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < means_.size(); ++i)
    bytes += static_cast<std::int64_t>(means_[i].nbytes() + squares_[i].nbytes());
  return bytes;
}

/// Trains on this rank's share of the rows and returns all weights at the end, as one fp64 vector.
inline torch::Tensor train(const ProcessGroup& group, const Training& training) {
  // Ranks other than 0 begin with other weights: rank 0's are what counts.
  LittleModel model(7 + static_cast<std::uint64_t>(group.rank()) * 100, training.layers_learn);
  const LittleModel first(7);
  for (std::size_t i = 0; i < model.parameters.size(); ++i)  // frozen ones come from files
    if (!model.parameters[i].second.requires_grad())
      model.parameters[i].second.copy_(first.parameters[i].second.detach());
  model.recompute = training.recompute;
  const auto sync = make_gradient_sync(training.sync, group, model.weights());
  model.sync = sync.get();

  NamedTensors learning;
  for (const auto& entry : model.parameters)
    if (entry.second.requires_grad()) learning.push_back(entry);
  const auto groups = sync->owned({learning, {}});
  Adam adam(groups[0]);
  const auto share = kRows / group.world_size();
  const auto micro = share / training.accumulation;
  for (std::int64_t step = 0; step < training.steps; ++step) {
    group.note(step + 1);
    for (std::int64_t i = 0; i < training.accumulation; ++i) {
      const auto begin = group.rank() * share + i * micro;
      sync->backward(model.loss(step, begin, begin + micro) / double{kRows},
                     i + 1 == training.accumulation);
    }
    const auto norm = sync->total_norm(adam.gradient_norm()).item<double>();
    adam.step(std::min(1.0, 2.0 / norm));
    sync->publish();
    for (const auto& [name, tensor] : learning) tensor.mutable_grad().reset();
  }
  {  // and once more without gradients, as validation does
    torch::NoGradGuard no_grad;
    model.loss(0, 0, 1);
  }
  sync->gather_on_host();
  if (training.sync.zero == 3 && group.rank() != 0) return torch::zeros({0});
  std::vector<torch::Tensor> all;
  for (const auto& [name, tensor] : model.parameters)
    all.push_back(tensor.detach().to(torch::kFloat64).flatten());
  return torch::cat(all);
}

}  // namespace llava::dist::testing
