#include "llava/nn/kv_cache.h"

#include "llava/base/check.h"

namespace llava::nn {

KvCache::KvCache(std::int64_t layers, std::int64_t heads, std::int64_t head_size,
                 std::int64_t capacity, const torch::TensorOptions& options)
    : capacity_(capacity) {
  // A recorded step looks at room behind what is kept, with weights of 0 that must meet numbers.
  const bool is_looked_at = !options.device().is_cpu();
  const auto room = [&] {
    const std::vector<std::int64_t> sizes{heads, capacity, head_size};
    return is_looked_at ? torch::zeros(sizes, options) : torch::empty(sizes, options);
  };
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    keys_.push_back(room());
    values_.push_back(room());
  }
}

void KvCache::expect_room(std::int64_t tokens) const {
  expect(length_ + tokens <= capacity_, Fault::capacity, "the conversation has ", length_ + tokens,
         " tokens but its cache holds ", capacity_,
         "; start a new conversation or raise the context size");
}

std::pair<torch::Tensor, torch::Tensor> KvCache::append(std::int64_t layer,
                                                        const torch::Tensor& keys,
                                                        const torch::Tensor& values) {
  expect_room(keys.size(1));
  const auto end = length_ + keys.size(1);
  auto &all_keys = keys_.at(layer), &all_values = values_.at(layer);
  all_keys.slice(1, length_, end).copy_(keys);
  all_values.slice(1, length_, end).copy_(values);
  return {all_keys.slice(1, 0, end), all_values.slice(1, 0, end)};
}

void KvCache::copy_from(const KvCache& other, std::int64_t from) {
  for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
    keys_[layer]
        .slice(1, from, other.length_)
        .copy_(other.keys_.at(layer).slice(1, from, other.length_));
    values_[layer]
        .slice(1, from, other.length_)
        .copy_(other.values_.at(layer).slice(1, from, other.length_));
  }
  length_ = other.length_;
}

}  // namespace llava::nn
