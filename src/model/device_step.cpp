#include "llava/model/device_step.h"

#include "llava/base/check.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace llava::model {
namespace {

using torch::Tensor;

constexpr std::int64_t kWindow = 256;  // tokens that what is looked at grows by

/// Memory of the host that a device copies from and to without the host waiting.
Tensor host_memory(torch::IntArrayRef sizes, torch::ScalarType type, torch::Device device) {
  return torch::empty(sizes, torch::TensorOptions(type).pinned_memory(!device.is_cpu()));
}

/// A place in the order of a device's work that the host can wait for.
class Mark {
 public:
  explicit Mark(torch::Device device) : device_(device) {
    if (!device.is_cpu()) event_.emplace(device.type());
  }
  void set() {
    if (event_) event_->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }
  void wait() {
    if (event_) event_->synchronize();
  }

 private:
  torch::Device device_;
  std::optional<c10::Event> event_;
};

}  // namespace

bool DeviceStep::is_possible(const Llava& model) {
  const auto& llama = *model->llama;
  return llama.config.sliding_window <= 0 &&
         !(llama.config.rope_scaling && llama.config.rope_scaling->type == "dynamic");
}

DeviceStep::DeviceStep(Llava model)
    : model_(std::move(model)), device_(model_->llama->embed_tokens->weight.device()) {}

void DeviceStep::forward(std::span<const nn::NextToken> tokens) {
  torch::NoGradGuard no_grad;
  std::int64_t longest = 0;
  for (const auto& token : tokens) {
    token.cache->expect_room(1);
    longest = std::max(longest, token.cache->length() + 1);
  }
  bind(tokens, longest);
  set_inputs(tokens);
  compute();
  host_logits_.copy_(logits_, /*non_blocking=*/true);
  Mark done(device_);
  done.set();
  done.wait();
  const auto V = host_logits_.size(1);
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    std::copy_n(host_logits_.const_data_ptr<float>() + static_cast<std::int64_t>(row) * V, V,
                tokens[row].logits);
    tokens[row].cache->advance(1);
  }
}

void DeviceStep::likeliest(const nn::NextToken& first,
                           const std::function<bool(std::int64_t id)>& take) {
  torch::NoGradGuard no_grad;
  auto& cache = *first.cache;
  cache.expect_room(1);
  const auto begin = cache.length(), room = cache.capacity() - begin;
  bind({&first, 1}, begin + 1);
  set_inputs({&first, 1});

  struct Result {
    Tensor id, logit;  // [1], on the host
    Mark mark;
  };
  const auto result = [&]() -> Result {
    return {host_memory({1}, torch::kInt64, device_), host_memory({1}, torch::kFloat32, device_),
            Mark(device_)};
  };
  Result results[2] = {result(), result()};
  const auto start = [&](std::int64_t step) {
    bind({&first, 1}, begin + step + 1);
    compute();
    const auto [logit, id] = logits_.max(-1);  // not a number where one is none
    inputs_[0].copy_(id);
    inputs_[1].add_(1);
    auto& here = results[step % 2];
    here.id.copy_(id, /*non_blocking=*/true);
    here.logit.copy_(logit, /*non_blocking=*/true);
    here.mark.set();
  };
  start(0);
  for (std::int64_t step = 0; step < room; ++step) {
    if (step + 1 < room) start(step + 1);
    auto& here = results[step % 2];
    here.mark.wait();
    expect(std::isfinite(*here.logit.const_data_ptr<float>()), Fault::non_finite,
           "the model's logits are not finite numbers; are the weights whole, and is the dtype "
           "wide enough for them (--dtype float32)?");
    cache.advance(1);
    if (!take(*here.id.const_data_ptr<std::int64_t>())) return;
  }
}

/// Makes the step one of these rows, and looks at as many tokens as the longest has, or some more.
void DeviceStep::bind(std::span<const nn::NextToken> tokens, std::int64_t longest) {
  std::vector<nn::KvCache*> caches;
  std::vector<const void*> places;
  for (const auto& token : tokens) {
    caches.push_back(token.cache);
    places.push_back(token.cache->keys(0).const_data_ptr());
  }
  const auto window = (longest + kWindow - 1) / kWindow * kWindow;
  if (caches != caches_ || places != places_) {
    const auto B = static_cast<std::int64_t>(tokens.size());
    if (!inputs_.defined() || inputs_.size(1) != B) {
      host_inputs_ = host_memory({2, B}, torch::kInt64, device_);
      inputs_ = torch::empty({2, B}, torch::TensorOptions(torch::kInt64).device(device_));
      const auto V = model_->config.text.vocab_size;
      host_logits_ = host_memory({B, V}, torch::kFloat32, device_);
      logits_ = torch::empty({B, V}, torch::TensorOptions(torch::kFloat32).device(device_));
    }
    caches_ = std::move(caches);
    places_ = std::move(places);
    times_bound_ = 0;
    recorded_.reset();
  }
  if (window != window_) recorded_.reset();
  window_ = window;
  ++times_bound_;
}

void DeviceStep::set_inputs(std::span<const nn::NextToken> tokens) {
  auto* ids = host_inputs_.data_ptr<std::int64_t>();
  auto* positions = ids + tokens.size();
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    ids[row] = tokens[row].id;
    positions[row] = tokens[row].cache->length();
  }
  inputs_.copy_(host_inputs_, /*non_blocking=*/true);
}

void DeviceStep::compute() {
  const auto work = [this] {
    const auto embeds = model_->llama->embed_tokens(inputs_[0]);
    const auto hidden = model_->llama->forward_at(embeds, inputs_[1], caches_, window_);
    logits_.copy_(model_->logits(hidden));
  };
  if (times_bound_ < 2) return work();
  if (!recorded_) recorded_ = std::make_unique<nn::RecordedWork>(device_, work);
  recorded_->run();
}

std::shared_ptr<DeviceStep> make_device_step(const Llava& model) {
  const bool is_on_gpu = model->llama->embed_tokens->weight.is_cuda();
  return is_on_gpu && DeviceStep::is_possible(model) ? std::make_shared<DeviceStep>(model)
                                                     : nullptr;
}

}  // namespace llava::model
