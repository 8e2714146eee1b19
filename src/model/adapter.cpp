#include "llava/model/adapter.h"

#include "folder_files.h"
#include "parts.h"
#include "sources.h"

#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/model/layouts.h"
#include "llava/model/pretrained.h"
#include "llava/nn/recompute.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

namespace llava::model {
namespace {

using torch::Tensor;

std::string adapter_file(const std::string& folder) {
  for (const auto* name : {"/adapter_model.safetensors", "/adapter_model.bin"})
    if (is_file(folder + name)) return folder + name;
  return "";
}

/// Where a matrix of a PEFT file belongs.
struct Place {
  std::string linear;  // our name of the Linear
  char half;           // 'A' or 'B'
};

/// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", with or without an adapter's
/// name before ".weight"; nothing for other names.
std::optional<Place> place_of(const std::string& name) {
  const auto at = name.find(".lora_");
  const std::string_view tail = ".weight";
  if (at == std::string::npos || at + 6 >= name.size() || !name.ends_with(tail)) return {};
  const char half = name[at + 6];
  if (half != 'A' && half != 'B') return {};
  const auto ours = our_name(name.substr(0, at) + ".weight");
  if (!ours) return {};
  return Place{ours->substr(0, ours->size() - tail.size()), half};
}

/// A tensor that is trained whole: PEFT puts "modules_to_save.default" into its name.
std::string plain_name(std::string name) {
  for (const std::string_view part : {".modules_to_save.default", ".modules_to_save"}) {
    const auto at = name.find(part);
    if (at != std::string::npos) name.erase(at, part.size());
  }
  return name;
}

struct Pair {
  Tensor a, b;
};

/// Per-module ranks and alphas: the first pattern that the name ends with.
std::optional<double> pattern_value(const Json& patterns, const std::string& name) {
  if (!patterns.is_object()) return {};
  for (const auto& [pattern, value] : patterns.items())
    if (value.is_number() && (name == pattern || name.ends_with("." + pattern)))
      return value.get<double>();
  return {};
}

Json adapter_json(const std::string& folder) { return read_json(folder + "/adapter_config.json"); }

/// The module of transformers' that holds one of our tensors, as PEFT's modules_to_save lists it;
/// "" for image_newline, which is no module's.
std::string saved_module(const std::string& ours) {
  if (ours.starts_with("projector.")) return "multi_modal_projector";
  if (ours.starts_with("vision.")) return "vision_tower";
  const auto parent = ours.substr(0, ours.rfind('.'));
  return parent == ours ? "" : parent.substr(parent.rfind('.') + 1);
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

bool is_adapter(const std::string& folder) {
  return is_file(folder + "/adapter_config.json") || !adapter_file(folder).empty();
}

weights::StateDict adapter_tensors(const std::string& folder) {
  weights::StateDict all;
  if (const auto file = adapter_file(folder); !file.empty()) all = weights::load_file(file);
  for (const auto* name : {"/non_lora_trainables.safetensors", "/non_lora_trainables.bin"}) {
    if (!is_file(folder + name)) continue;
    for (const auto& [tensor_name, tensor] : weights::load_file(folder + name))
      if (!all.contains(tensor_name)) all.add(tensor_name, tensor);
    break;
  }
  return all;
}

std::vector<std::string> extra_tensors(const std::string& folder) {
  std::vector<std::string> names;
  Sources extra;
  add_extra_tensors(folder, extra);
  return extra.names();
}

bool is_lora_target(const std::string& name) { return name.starts_with("llama.layers."); }

AdapterConfig read_adapter_config(const std::string& folder) {
  const auto path = folder + "/adapter_config.json";
  const auto json = read_json(path);
  const Keys keys(json, path);
  keys.word("peft_type", "LORA", {"LORA"});
  keys.word("bias", "none", {"none"});
  for (const auto* key : {"use_dora", "fan_in_fan_out"})
    expect(!keys.get<bool>(key, false), Fault::data, keys.where(key), ": this is not supported");
  for (const auto* key : {"r", "lora_alpha"})
    expect(keys.has(key), Fault::data, path, ": \"", key, "\" is missing");
  AdapterConfig config;
  config.lora.r = keys.size("r", 0);
  config.lora.alpha = keys.get<double>("lora_alpha", 0);
  config.lora.dropout = keys.get<double>("lora_dropout", 0);
  config.lora.rslora = keys.get<bool>("use_rslora", false);
  expect(config.lora.dropout >= 0 && config.lora.dropout < 1, Fault::data,
         keys.where("lora_dropout"), " must be in [0, 1)");
  config.base_model = keys.get<std::string>("base_model_name_or_path", "");
  const auto* targets = keys.find("target_modules");
  if (targets && targets->is_string()) config.target_modules = {targets->get<std::string>()};
  for (std::size_t i = 0; targets && targets->is_array() && i < targets->size(); ++i) {
    expect((*targets)[i].is_string(), Fault::data, keys.where("target_modules"),
           ": expected a list of names");
    config.target_modules.push_back((*targets)[i].get<std::string>());
  }
  return config;
}

void add_extra_tensors(const std::string& folder, Sources& sources) {
  for (const auto* name : {"/non_lora_trainables.safetensors", "/non_lora_trainables.bin"})
    if (is_file(folder + name)) {
      sources.add(folder + name, weights::load_file(folder + name));
      break;
    }
  const auto file = adapter_file(folder);
  expect(!file.empty(), Fault::data, folder,
         ": adapter_config.json is here but neither adapter_model.safetensors nor .bin");
  weights::StateDict whole;
  for (const auto& [name, tensor] : weights::load_file(file))
    if (name.find(".lora_") == std::string::npos) whole.add(plain_name(name), tensor);
  if (!whole.empty()) sources.add(file, whole);
}

Layout adapter_layout(const std::string& base_folder) {
  const bool is_whole = has_llava_config(base_folder);
  return is_whole ? read_llava_config(base_folder).layout : Layout::original;
}

void load_adapter(const std::string& folder, Llava& model) {
  torch::NoGradGuard no_grad;
  const auto config = read_adapter_config(folder);
  const auto json = adapter_json(folder);
  const auto file = adapter_file(folder);
  expect(!file.empty(), Fault::data, folder,
         ": neither adapter_model.safetensors nor adapter_model.bin is here");
  Sources extra;
  add_extra_tensors(folder, extra);
  extra.check_known(model);

  std::map<std::string, Pair> pairs;
  std::vector<std::string> faults;
  for (const auto& [name, tensor] : weights::load_file(file)) {
    if (name.find(".lora_") == std::string::npos) continue;
    const auto place = place_of(name);
    if (!place) {
      faults.push_back(weights::shown(name) + " belongs nowhere");
      continue;
    }
    (place->half == 'A' ? pairs[place->linear].a : pairs[place->linear].b) = tensor;
  }
  std::map<std::string, nn::Linear> linears;
  for (auto& [name, linear] : nn::named_linears(*model)) linears.emplace(name, linear);
  for (const auto& [name, pair] : pairs) {
    const auto found = linears.find(name);
    if (found == linears.end()) {
      faults.push_back(name + " is no layer of the model");
    } else if (!pair.a.defined() || !pair.b.defined()) {
      faults.push_back(name + " has only one of lora_A and lora_B");
    } else if (pair.a.dim() != 2 || pair.b.dim() != 2 || pair.a.size(0) != pair.b.size(1) ||
               pair.a.size(1) != found->second->in() || pair.b.size(0) != found->second->out()) {
      faults.push_back(name + " has pairs of another width than the model");
    }
  }
  if (!faults.empty()) {
    std::string list;
    for (std::size_t i = 0; i < std::min<std::size_t>(faults.size(), 10); ++i)
      list += (i > 0 ? "; " : "") + faults[i];
    fail(Fault::data, file, ": ", faults.size(), " tensors do not fit the model: ", list,
         "; is it an adapter of another base model?");
  }
  expect(!pairs.empty(), Fault::data, file, ": there is no LoRA pair in it");

  extra.fill(model, /*leaves_in_files=*/false);
  for (const auto& [name, pair] : pairs) {
    auto lora = config.lora;
    lora.r = pair.a.size(0);
    lora.alpha = pattern_value(json.value("alpha_pattern", Json()), name).value_or(lora.alpha);
    auto& linear = linears.at(name);
    nn::attach_lora(linear, lora, /*seed=*/0);
    linear->lora_A->weight.copy_(pair.a);
    linear->lora_B->weight.copy_(pair.b);
  }
}

namespace {

/// The model's settings: where the reference looks for them, or out of transformers' sight.
void save_settings(const std::string& folder, Llava& model, Layout layout,
                   const std::string& base_model) {
  auto config = model->config;
  config.torch_dtype = dtype_name(model->head_weight().scalar_type());
  if (layout == Layout::original) {
    // A bare LLM holds no tower: readers take it from the folder that mm_vision_tower names.
    config.tower_in_weights &= has_llava_config(base_model) || nn::is_trainable(*model->vision);
    write_file(folder + "/config.json", json_text(original_config(config)));
    return;
  }
  const auto place = folder + "/" + kAdapterSettings;
  make_folder(place);
  write_file(place + "/preprocessor_config.json", json_text(preprocessor_config(config)));
  write_file(place + "/generation_config.json", json_text(generation_config(config)));
  write_file(place + "/config.json", json_text(hugging_face_config(config)));
  std::filesystem::remove(folder + "/config.json");  // of an earlier save
}

}  // namespace

void save_adapter(const std::string& folder, Llava& model, Layout layout,
                  const std::string& base_model) {
  torch::NoGradGuard no_grad;
  const std::string prefix = "base_model.model.";
  weights::StateDict pairs, extra;
  std::set<std::string> targets, modules;
  std::optional<nn::LoraConfig> lora;
  for (const auto& [name, linear] : nn::named_linears(*model)) {
    if (!linear->has_lora()) continue;
    const auto r = linear->lora_A->out();
    const nn::LoraConfig own{r, linear->lora_scale * static_cast<double>(r), linear->lora_dropout,
                             false};
    expect(!lora || (lora->r == own.r && std::abs(lora->alpha - own.alpha) < 1e-9), Fault::usage,
           "the model's LoRA pairs differ in rank or scale; this cannot be saved");
    lora = own;
    targets.insert(last_part(name));
    const auto module = prefix + module_name(name + ".", layout);
    pairs.add(module + "lora_A.weight", linear->lora_A->weight.detach());
    pairs.add(module + "lora_B.weight", linear->lora_B->weight.detach());
  }
  expect(lora.has_value(), Fault::usage, "the model has no LoRA to save");
  for (const auto& item : model->named_parameters())
    if (item.value().requires_grad() && item.key().find(".lora_") == std::string::npos) {
      const auto name = prefix + module_name(item.key(), layout);
      extra.add(name, item.value().detach());
      if (layout == Layout::original) continue;
      const auto module = saved_module(item.key());
      if (module.empty()) {
        log::warn(item.key(), " learned, and PEFT has no place for it: it is in ", folder,
                  "/non_lora_trainables.bin alone; llava convert merges it");
        continue;
      }
      modules.insert(module);
      pairs.add(name, item.value().detach());
    }

  make_folder(folder);
  weights::save_safetensors(folder + "/adapter_model.safetensors", pairs);
  if (!extra.empty()) weights::save_torch_file(folder + "/non_lora_trainables.bin", extra);
  Json json{{"peft_type", "LORA"},
            {"task_type", "CAUSAL_LM"},
            {"base_model_name_or_path", base_model},
            {"r", lora->r},
            {"lora_alpha", lora->alpha},
            {"lora_dropout", lora->dropout},
            {"use_rslora", false},
            {"bias", "none"},
            {"fan_in_fan_out", false},
            {"inference_mode", true},
            {"modules_to_save", modules.empty() ? Json(nullptr) : Json(modules)}};
  if (lora->alpha == std::floor(lora->alpha))
    json["lora_alpha"] = static_cast<std::int64_t>(lora->alpha);
  if (layout == Layout::original) {
    json["target_modules"] = targets;
  } else {  // as text: a regular expression, since the tower has layers of the same names
    std::string names;
    for (const auto& target : targets) names += (names.empty() ? "" : "|") + target;
    json["target_modules"] = R"(model\.language_model\.layers\.\d+\.\w+\.()" + names + ")";
  }
  write_file(folder + "/adapter_config.json", json_text(json));
  save_settings(folder, model, layout, base_model);
}

}  // namespace llava::model
