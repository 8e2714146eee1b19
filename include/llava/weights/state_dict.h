// Ordered name -> tensor. Tensors read from files share the file's mapping: a StateDict of a 13B
// folder takes no memory until its tensors are read, and an entry that is dropped gives the pages
// it touched back at once. So `copy, remove, next` loads a model with one tensor in memory twice.
#pragma once

#include "llava/torch.h"

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llava::weights {

class StateDict {
 public:
  using Entry = std::pair<std::string, torch::Tensor>;

  /// Throws Error(data) if the name is taken.
  void add(const std::string& name, const torch::Tensor& tensor);
  bool contains(const std::string& name) const;
  /// Throws Error(data) naming the tensor if it is not there.
  const torch::Tensor& at(const std::string& name) const;
  /// Drops an entry, and with it its share of the mapping. Time grows with size().
  void remove(const std::string& name);

  std::size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  std::vector<Entry>::const_iterator begin() const { return entries_.begin(); }
  std::vector<Entry>::const_iterator end() const { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
};

/// All weights of a folder: model.safetensors, sharded safetensors with index, pytorch_model.bin or
/// sharded .bin with index, in this order of preference. Of shards exactly what the index lists is
/// returned, in its order; tensors of a shard that it does not list are warned about.
/// Throws Error(data).
StateDict load_folder(const std::string& folder);

/// Whether load_folder would find weights there.
bool has_weights(const std::string& folder);

/// One file of weights: safetensors if it is called so, else PyTorch's. For
/// adapter_model.safetensors, mm_projector.bin, non_lora_trainables.bin and the like.  Throws
/// Error(data).
StateDict load_file(const std::string& path);

/// A name that came from a file as messages show it: quoted, escaped, cut at 80 characters.
std::string shown(std::string_view name);

}  // namespace llava::weights
