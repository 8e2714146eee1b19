// Keys and values of one row (one conversation), all layers; grows in place up to its capacity.
#pragma once

#include "llava/torch.h"

#include <vector>

namespace llava::nn {

class KvCache {
 public:
  /// Room for `capacity` tokens in `layers` layers of `heads` key/value heads of size `head_size`.
  KvCache(std::int64_t layers, std::int64_t heads, std::int64_t head_size, std::int64_t capacity,
          const torch::TensorOptions& options);

  /// Stores keys and values [K, T, E] of new tokens after those kept, for one layer, and returns
  /// all of that layer's, [K, length + T, E] views. Throws Error(capacity) when full.
  std::pair<torch::Tensor, torch::Tensor> append(std::int64_t layer, const torch::Tensor& keys,
                                                 const torch::Tensor& values);

  /// Throws Error(capacity) unless `tokens` more can be kept.
  void expect_room(std::int64_t tokens) const;

  /// A layer's whole room, [K, capacity, E], of which the first length() tokens are kept.
  const torch::Tensor& keys(std::int64_t layer) const { return keys_.at(layer); }
  const torch::Tensor& values(std::int64_t layer) const { return values_.at(layer); }

  /// Tokens kept. advance() is called once per forward, after all layers appended.
  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  void advance(std::int64_t tokens) { length_ += tokens; }

  /// Forgets all but the first `length` tokens.
  void truncate(std::int64_t length) { length_ = length; }

  /// Becomes what `other` (of the same model) holds, of which the first `from` tokens
  /// are here already.
  void copy_from(const KvCache& other, std::int64_t from);

 private:
  std::vector<torch::Tensor> keys_, values_;  // per layer [K, capacity, E]
  std::int64_t length_ = 0, capacity_ = 0;
};

}  // namespace llava::nn
