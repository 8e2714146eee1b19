// Tensors of one or several files on their way into a model, under our names.
#pragma once

#include "llava/model/llava.h"
#include "llava/weights/state_dict.h"

#include <string>
#include <unordered_map>
#include <vector>

namespace llava::model {

class Sources {
 public:
  /// Takes a file's or folder's tensors; what was there under the same name is replaced. With
  /// `prefixes`, only ours that begin with one of them; others are left out silently. Throws
  /// Error(data) if two tensors of `state` have one name of ours.
  void add(const std::string& where, const weights::StateDict& state,
           const std::vector<std::string>& prefixes = {});

  const torch::Tensor* find(const std::string& name) const;
  std::vector<std::string> names() const;
  bool has_prefix(const std::string& prefix) const;

  /// Names that begin with one of these may be absent.
  void allow_missing(std::vector<std::string> prefixes) { optional_ = std::move(prefixes); }

  /// Throws Error(data) that lists every missing, unexpected and misshapen tensor of a model of
  /// this config. Nothing is allocated.
  void check(const LlavaConfig& config);

  /// The same for a part of a model that exists already.
  void check_part(const Llava& model, const std::string& prefix);

  /// The same for any of its tensors: none need be there, but those that are must fit.
  void check_known(const Llava& model);

  /// Copies each tensor to its place, dropping it afterwards, or makes it the place where its dtype
  /// is the wanted one. Returns how many lost bits.
  std::int64_t fill(Llava& model, bool leaves_in_files);

 private:
  struct Entry {
    std::string name;    // ours
    std::string source;  // the file's
    torch::Tensor tensor;
  };

  void compare(const torch::OrderedDict<std::string, torch::Tensor>& wanted, Layout layout);

  std::vector<Entry> entries_;  // in the order of the files
  std::unordered_map<std::string, std::size_t> index_;
  std::vector<std::string> unexpected_, optional_, places_;
};

/// Adds the tensors that a LoRA folder holds beside the pairs: non_lora_trainables,
/// modules_to_save.
void add_extra_tensors(const std::string& folder, Sources& sources);

}  // namespace llava::model
