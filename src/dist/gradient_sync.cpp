#include "llava/dist/gradient_sync.h"

#include "buckets.h"
#include "llava/base/check.h"
#include "zero.h"

#include <algorithm>
#include <charconv>

namespace llava::dist {
namespace {

class Alone : public GradientSync {
 public:
  void backward(const torch::Tensor& loss, bool /*last_micro_step*/) override { loss.backward(); }
};

/// Every rank holds everything; gradients are summed over the ranks, bucket by bucket.
class Ddp : public GradientSync {
 public:
  Ddp(const SyncConfig& config, const ProcessGroup& group, const Weights& weights)
      : group_(group),
        compress_(config.grad_compression),
        buckets_(make_buckets({weights.parameters, {}}, bucket_bytes(config, group.world_size()),
                              group.world_size(),
                              /*with_frozen=*/false)),
        exchanges_(buckets_.size()),
        narrow_(buckets_.size()),
        collector_(buckets_, std::nullopt, /*keeps_gradients=*/true, [this](std::size_t bucket) {
          if (exchanges_now_) program_.ready(bucket);
        }) {
    for (std::size_t i = 0; i < buckets_.size(); ++i) program_.add([this, i] { exchange(i); });
  }

  void backward(const torch::Tensor& loss, bool last_micro_step) override {
    exchanges_now_ = last_micro_step;
    collector_.begin_backward();
    program_.begin();
    loss.backward();
    if (!last_micro_step) return;
    program_.finish();
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      exchanges_[i].wait();
      if (narrow_[i].defined()) buckets_[i].gradients.copy_(narrow_[i]);
      narrow_[i].reset();
    }
  }

  void publish() override {
    for (auto& bucket : buckets_) {
      for (auto& slot : bucket.slots) slot.parameter.mutable_grad().reset();
      bucket.gradients.reset();
    }
  }

  HeldBytes held_bytes() const override {
    HeldBytes held;
    for (const auto& bucket : buckets_) {
      const auto width = static_cast<std::int64_t>(bucket.slots.front().parameter.element_size());
      for (const auto& slot : bucket.slots) held.weights += slot.size * width;
      held.gradients += bucket.size * width;
    }
    return held;
  }

 private:
  void exchange(std::size_t i) {
    torch::NoGradGuard no_grad;
    collector_.close(i);
    const auto& gradients = buckets_[i].gradients;
    if (compress_ && gradients.scalar_type() == torch::kFloat32)
      narrow_[i] = gradients.to(torch::kBFloat16);
    exchanges_[i] = group_.all_reduce(narrow_[i].defined() ? narrow_[i] : gradients,
                                      "gradients of " + buckets_[i].name());
  }

  const ProcessGroup& group_;
  bool compress_, exchanges_now_ = false;
  std::vector<Bucket> buckets_;
  std::vector<Exchange> exchanges_;
  std::vector<torch::Tensor> narrow_;  // what travels instead, with compression
  Program program_;
  Collector collector_;
};

/// Everything that learns as rank 0 has it, a bucket at a time.
void equalize(const ProcessGroup& group, const Weights& weights) {
  torch::NoGradGuard no_grad;
  if (group.world_size() == 1) return;
  constexpr std::int64_t kBytes = 64 << 20;
  for (const auto& bucket : make_buckets(weights, kBytes, 1, /*with_frozen=*/false)) {
    const auto flat = torch::zeros({bucket.size}, bucket.options());
    for (const auto& slot : bucket.slots) slot.view(flat).copy_(slot.parameter);
    group.broadcast(flat, "weights of " + bucket.name()).wait();
    for (const auto& slot : bucket.slots) slot.parameter.detach().copy_(slot.view(flat));
  }
}

}  // namespace

void check(const SyncConfig& config) {
  expect(config.zero >= 0 && config.zero <= 3, Fault::usage, "--zero is ", config.zero,
         ", expected 0, 1, 2 or 3");
  expect(config.grad_dtype == "auto" || config.grad_dtype == "float32", Fault::usage,
         "--grad_dtype is \"", config.grad_dtype, "\", expected auto or float32");
  expect(config.ddp_bucket_cap_mb >= 0, Fault::usage, "--ddp_bucket_cap_mb is ",
         config.ddp_bucket_cap_mb, ", which is negative");
  expect(config.zero > 0 || (!config.zero_offload_optimizer && config.grad_dtype == "auto"),
         Fault::usage, "--zero_offload_optimizer and --grad_dtype need --zero 1, 2 or 3");
}

std::unique_ptr<GradientSync> make_gradient_sync(const SyncConfig& config,
                                                 const ProcessGroup& group,
                                                 const Weights& weights) {
  check(config);
  equalize(group, weights);
  if (config.zero > 0) return make_zero(config, group, weights);
  if (group.world_size() == 1) return alone();
  return std::make_unique<Ddp>(config, group, weights);
}

std::unique_ptr<GradientSync> alone() { return std::make_unique<Alone>(); }

PieceName split_piece(const std::string& name) {
  PieceName piece{name};
  const auto bracket = name.rfind('[');
  if (bracket == std::string::npos || name.back() != ']') return piece;
  const char* at = name.data() + bracket + 1;
  const char* last = name.data() + name.size() - 1;
  std::int64_t begin = 0, end = 0;
  const auto first = std::from_chars(at, last, begin);
  if (first.ec != std::errc() || first.ptr == last || *first.ptr != ':') return piece;
  const auto second = std::from_chars(first.ptr + 1, last, end);
  if (second.ec != std::errc() || second.ptr != last) return piece;
  return {name.substr(0, bracket), begin, end};
}

}  // namespace llava::dist
