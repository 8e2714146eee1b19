#include "buckets.h"

#include "llava/base/check.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace llava::dist {
namespace {

/// Runs after a parameter's gradient was accumulated.
struct Hook : torch::autograd::PostAccumulateGradHook {
  explicit Hook(std::function<void()> action) : action(std::move(action)) {}
  void operator()(const torch::autograd::Variable& /*parameter*/) override { action(); }
  std::function<void()> action;
};

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::string Bucket::name() const {
  const auto more = slots.size() - 1;
  return slots.front().name + (more ? " and " + std::to_string(more) + " more" : "");
}

std::int64_t bucket_bytes(const SyncConfig& config, std::int64_t world_size) {
  // Small exchanges waste the link on latency: at least 1 MiB a rank where there are many.
  const auto mebibytes = config.ddp_bucket_cap_mb > 0 ? config.ddp_bucket_cap_mb
                                                      : std::max<std::int64_t>(25, world_size);
  return mebibytes << 20;
}

std::vector<Bucket> make_buckets(const Weights& weights, std::int64_t cap_bytes,
                                 std::int64_t world_size, bool with_frozen) {
  std::vector<Bucket> buckets;
  for (auto i = weights.parameters.size(); i-- > 0;) {
    const auto& [name, parameter] = weights.parameters[i];
    const bool learns = parameter.requires_grad();
    if (!learns && !with_frozen) continue;
    const auto layer = weights.layers.empty() ? -1 : weights.layers[i];
    // Buckets of several kinds may be open: a layer's bf16 weights and its fp32 LoRA pairs.
    auto at = buckets.size();
    for (auto open = buckets.size(); open-- > 0 && buckets[open].layer == layer;) {
      const auto& like = buckets[open].slots.front().parameter;
      if (at == buckets.size() && buckets[open].learns == learns &&
          like.scalar_type() == parameter.scalar_type() && like.device() == parameter.device())
        at = open;
    }
    const auto room = cap_bytes / static_cast<std::int64_t>(parameter.element_size());
    const bool full =
        at < buckets.size() && layer < 0 && buckets[at].size + parameter.numel() > room;
    if (at == buckets.size() || full) {
      at = buckets.size();
      buckets.emplace_back();
      buckets.back().layer = layer;
      buckets.back().learns = learns;
    }
    Bucket& bucket = buckets[at];
    bucket.slots.push_back({name, parameter, bucket.size, parameter.numel()});
    bucket.size += round_up(parameter.numel(), kAlignment);
  }
  for (auto& bucket : buckets) bucket.size = round_up(bucket.size, world_size * kAlignment);
  return buckets;
}

Collector::Collector(std::vector<Bucket>& buckets, std::optional<torch::ScalarType> dtype,
                     bool keeps_gradients, std::function<void(std::size_t)> on_full)
    : buckets_(buckets),
      dtype_(dtype),
      keeps_gradients_(keeps_gradients),
      on_full_(std::move(on_full)) {
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    if (!buckets_[i].learns) continue;
    for (auto& slot : buckets_[i].slots)
      torch::autograd::impl::set_post_acc_grad_hooks(
          slot.parameter, std::make_unique<Hook>([this, i, &slot] { collect(i, slot); }));
  }
}

Collector::~Collector() {
  for (auto& bucket : buckets_)
    if (bucket.learns)
      for (auto& slot : bucket.slots)
        torch::autograd::impl::set_post_acc_grad_hooks(slot.parameter, nullptr);
}

void Collector::begin_backward() {
  for (auto& bucket : buckets_) {
    bucket.missing = static_cast<std::int64_t>(bucket.slots.size());
    bucket.closed = false;
    for (auto& slot : bucket.slots) slot.arrived = false;
  }
}

const torch::Tensor& Collector::gradients(Bucket& bucket) {
  if (!bucket.gradients.defined()) {
    auto options = bucket.options();
    if (dtype_) options = options.dtype(*dtype_);
    bucket.gradients = torch::empty({bucket.size}, options);
    for (auto& slot : bucket.slots) slot.filled = false;
  }
  return bucket.gradients;
}

void Collector::collect(std::size_t index, Slot& slot) {
  torch::NoGradGuard no_grad;
  Bucket& bucket = buckets_[index];
  expect(!bucket.closed, Fault::failure, "the gradient of ", slot.name,
         " arrived after its exchange; it is used in a place that backward reaches twice");
  const auto place = slot.view(gradients(bucket));
  auto& gradient = slot.parameter.mutable_grad();
  if (!gradient.is_alias_of(place)) {  // else autograd has added to it in place
    if (slot.filled) {
      place.add_(gradient);
    } else {
      place.copy_(gradient);
    }
  }
  slot.filled = true;
  if (keeps_gradients_) {
    gradient = place;
  } else {
    gradient.reset();
  }
  if (std::exchange(slot.arrived, true)) return;
  if (--bucket.missing == 0) on_full_(index);
}

void Collector::close(std::size_t index) {
  torch::NoGradGuard no_grad;
  Bucket& bucket = buckets_[index];
  const auto& flat = gradients(bucket);
  std::int64_t end = 0;
  for (auto& slot : bucket.slots) {
    flat.narrow(0, end, slot.begin - end).zero_();  // padding
    end = slot.begin + slot.size;
    if (!slot.filled) flat.narrow(0, slot.begin, slot.size).zero_();
    slot.filled = true;
    if (keeps_gradients_) slot.parameter.mutable_grad() = slot.view(flat);
  }
  flat.narrow(0, end, bucket.size - end).zero_();
  bucket.closed = true;
}

std::size_t Program::add(std::function<void()> issue) {
  operations_.push_back({std::move(issue)});
  return operations_.size() - 1;
}

void Program::begin() {
  next_ = 0;
  for (auto& operation : operations_) operation.ready = false;
}

void Program::ready(std::size_t operation) {
  operations_[operation].ready = true;
  while (next_ < operations_.size() && operations_[next_].ready) operations_[next_++].issue();
}

void Program::issue_through(std::size_t operation) {
  while (next_ <= operation) operations_[next_++].issue();
}

void Program::finish() {
  if (!operations_.empty()) issue_through(operations_.size() - 1);
}

}  // namespace llava::dist
