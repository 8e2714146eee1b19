#include "sources.h"

#include "llava/base/check.h"
#include "llava/model/layouts.h"

#include <algorithm>
#include <sstream>

namespace llava::model {
namespace {

using torch::Tensor;

bool begins_with_any(const std::string& name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return name.starts_with(prefix); });
}

/// "3 tensors are missing: a, b, c", at most ten of them by name.
void describe(std::ostringstream& text, const std::vector<std::string>& items, const char* what) {
  constexpr std::size_t kShown = 10;
  if (items.empty()) return;
  text << "; " << items.size() << (items.size() == 1 ? " tensor " : " tensors ") << what << ": ";
  for (std::size_t i = 0; i < std::min(items.size(), kShown); ++i)
    text << (i > 0 ? ", " : "") << items[i];
  if (items.size() > kShown) text << " and " << items.size() - kShown << " more";
}

std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes();
  return text.str();
}

}  // namespace

void Sources::add(const std::string& where, const weights::StateDict& state,
                  const std::vector<std::string>& prefixes) {
  places_.push_back(where);
  std::unordered_map<std::string, std::string> taken;  // of this file: ours -> its own
  for (const auto& [source, tensor] : state) {
    if (is_ignored(source)) continue;
    const auto name = our_name(source);
    if (!name) {
      if (prefixes.empty()) unexpected_.push_back(weights::shown(source));
      continue;
    }
    if (!prefixes.empty() && !begins_with_any(*name, prefixes)) continue;
    const auto [other, is_new] = taken.emplace(*name, source);
    expect(is_new, Fault::data, where, ": ", weights::shown(other->second), " and ",
           weights::shown(source), " are the same tensor of the model; remove one of them");
    const auto [place, is_first] = index_.emplace(*name, entries_.size());
    if (is_first) {
      entries_.push_back({*name, source, tensor});
    } else {
      entries_[place->second] = {*name, source, tensor};
    }
  }
}

const Tensor* Sources::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second].tensor;
}

std::vector<std::string> Sources::names() const {
  std::vector<std::string> all;
  for (const auto& entry : entries_) all.push_back(entry.name);
  return all;
}

bool Sources::has_prefix(const std::string& prefix) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& entry) { return entry.name.starts_with(prefix); });
}

void Sources::check(const LlavaConfig& config) {
  const auto meta = torch::TensorOptions(torch::kFloat32).device(torch::kMeta);
  const Llava model(config, meta);
  if (config.text.tie_word_embeddings)  // some files hold the tied copy as well
    std::erase_if(entries_, [](const Entry& entry) { return entry.name == "lm_head.weight"; });
  compare(model->named_parameters(), config.layout);
}

void Sources::check_part(const Llava& model, const std::string& prefix) {
  torch::OrderedDict<std::string, Tensor> part;
  for (const auto& item : model->named_parameters())
    if (item.key().starts_with(prefix)) part.insert(item.key(), item.value());
  compare(part, model->config.layout);
}

void Sources::check_known(const Llava& model) {
  optional_ = {""};
  compare(model->named_parameters(), model->config.layout);
}

void Sources::compare(const torch::OrderedDict<std::string, Tensor>& wanted, Layout layout) {
  std::vector<std::string> missing, unexpected = unexpected_, misshapen;
  for (const auto& entry : entries_) {
    const auto* place = wanted.find(entry.name);
    if (!place) {
      unexpected.push_back(weights::shown(entry.source));
    } else if (place->sizes() != entry.tensor.sizes()) {
      misshapen.push_back(weights::shown(entry.source) + " is " + shape_text(entry.tensor) +
                          ", not " + shape_text(*place));
    } else if (!entry.tensor.is_floating_point()) {
      misshapen.push_back(weights::shown(entry.source) + " holds whole numbers (" +
                          std::string(entry.tensor.dtype().name()) + ")");
    }
  }
  for (const auto& item : wanted)
    if (!find(item.key()) && !begins_with_any(item.key(), optional_))
      missing.push_back(layout_name(item.key(), layout));
  if (missing.empty() && unexpected.empty() && misshapen.empty()) return;
  std::ostringstream text;
  describe(text, missing, "missing");
  describe(text, unexpected, "unexpected");
  describe(text, misshapen, "of another shape than the config says");
  std::string places;
  for (const auto& place : places_) places += (places.empty() ? "" : " + ") + place;
  fail(Fault::data, places, ": the weights do not fit the model", text.str(),
       "; is config.json from another model?");
}

std::int64_t Sources::fill(Llava& model, bool leaves_in_files) {
  torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  std::int64_t narrowed = 0;
  for (auto& entry : entries_) {
    auto& place = parameters[entry.name];
    const auto type = place.scalar_type();
    narrowed += c10::promoteTypes(entry.tensor.scalar_type(), type) != type;
    if (leaves_in_files && entry.tensor.scalar_type() == type && entry.tensor.is_contiguous())
      place.set_data(entry.tensor);
    else
      place.copy_(entry.tensor);
    entry.tensor.reset();
  }
  entries_.clear();
  index_.clear();
  return narrowed;
}

}  // namespace llava::model
