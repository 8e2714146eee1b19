#include "llava/model/inspection.h"

#include "parts.h"

#include "llava/model/adapter.h"
#include "llava/model/chat_template.h"
#include "llava/model/layouts.h"
#include "llava/model/pretrained.h"
#include "llava/weights/state_dict.h"
#include "llava/weights/torch_file.h"

#include <map>

namespace llava::model {
namespace {

enum class Kind { llava, peft, projector, clip, language };

Kind kind_of(const std::string& folder) {
  expect(is_folder(folder), Fault::data, folder, ": there is no such folder");
  if (is_adapter(folder)) return Kind::peft;
  const bool has_weights = weights::has_weights(folder);
  for (const auto* name : {"/mm_projector.safetensors", "/mm_projector.bin"})
    if (!has_weights && is_file(folder + name)) return Kind::projector;
  expect(is_file(folder + "/config.json"), Fault::data, folder,
         ": this is no model folder: config.json is missing");
  const auto json = read_json(folder + "/config.json");
  const auto has = [&](const char* key) { return json.is_object() && json.contains(key); };
  const auto type = json.is_object() ? json.value("model_type", "") : "";
  if (type == "clip" || type == "clip_vision_model") return Kind::clip;
  if (has("mm_vision_tower") || has("mm_projector_type") || has("vision_config") ||
      has("text_config") || type.starts_with("llava"))
    return Kind::llava;
  return Kind::language;
}

weights::StateDict load_projector_file(const std::string& folder) {
  for (const auto* name : {"/mm_projector.safetensors", "/mm_projector.bin"})
    if (is_file(folder + name)) return weights::load_file(folder + name);
  return {};
}

std::string part_of(const std::string& ours) {
  if (ours.starts_with("vision.")) return "vision";
  if (ours.starts_with("projector.") || ours == "image_newline") return "projector";
  return "text";
}

std::string family_of(const LlavaConfig& config) {
  if (config.is_video) return "llava_next_video";
  return config.tiling.aspect == media::Aspect::anyres ? "llava_next" : "llava";
}

Json vision_sizes(const ClipVisionConfig& vision) {
  return {{"hidden_size", vision.hidden_size},
          {"intermediate_size", vision.intermediate_size},
          {"num_hidden_layers", vision.num_hidden_layers},
          {"num_attention_heads", vision.num_attention_heads},
          {"image_size", vision.image_size},
          {"patch_size", vision.patch_size}};
}

Json text_sizes(const LlamaConfig& text) {
  return {{"model_type", text.model_type},
          {"vocab_size", text.vocab_size},
          {"hidden_size", text.hidden_size},
          {"intermediate_size", text.intermediate_size},
          {"num_hidden_layers", text.num_hidden_layers},
          {"num_attention_heads", text.num_attention_heads},
          {"num_key_value_heads", text.num_key_value_heads},
          {"head_dim", text.head_dim},
          {"max_position_embeddings", text.max_position_embeddings}};
}

Json projector_sizes(const LlavaConfig& config) {
  return {{"type", config.projector_type},
          {"feature_layers", config.feature_layers},
          {"feature_select", config.feature_select},
          {"image_newline", config.has_newline}};
}

/// What a folder holds, part by part, and what of it is not as its config says.
class Report {
 public:
  explicit Report(const std::string& layout) {
    json_ = {
        {"family", ""},
        {"layout", layout},
        {"template", ""},
        {"dtype", ""},
        {"parts",
         {{"vision", Json::object()}, {"projector", Json::object()}, {"text", Json::object()}}},
        {"num_parameters", 0},
        {"missing", Json::array()},
        {"unexpected", Json::array()},
        {"misshapen", Json::array()}};
  }

  Json& operator[](const char* key) { return json_[key]; }

  /// Counts tensors by part, LoRA's pairs with the Linear they are of; names that no model has are
  /// unexpected.
  void count(const weights::StateDict& state) {
    std::map<std::string, std::int64_t> numbers{{"vision", 0}, {"projector", 0}, {"text", 0}};
    for (const auto& [name, tensor] : state) {
      if (is_ignored(name)) continue;
      const auto pair = name.find(".lora_");
      const auto ours = our_name(name.substr(0, pair) + (pair == name.npos ? "" : ".weight"));
      if (!ours) {
        json_["unexpected"].push_back(name);
        continue;
      }
      if (pair == name.npos) {
        shapes_.emplace(*ours, tensor.sizes().vec());
        names_.emplace(*ours, name);
      }
      numbers[part_of(*ours)] += tensor.numel();
      if (*ours == "llama.embed_tokens.weight" || json_["dtype"] == "")
        json_["dtype"] = dtype_name(tensor.scalar_type());
    }
    std::int64_t total = 0;
    for (const auto& [part, number] : numbers) {
      json_["parts"][part]["num_parameters"] = number;
      total += number;
    }
    json_["num_parameters"] = total;
  }

  /// Compares with the tensors a model of this config has; those of other parts than `wanted`
  /// ("vision", "text" ...) need not be there.
  void compare(const LlavaConfig& config, const std::vector<std::string>& wanted) {
    const Llava model(config, torch::TensorOptions(torch::kFloat32).device(torch::kMeta));
    const auto is_wanted = [&](const std::string& ours) {
      return std::find(wanted.begin(), wanted.end(), part_of(ours)) != wanted.end();
    };
    std::map<std::string, std::vector<std::int64_t>> has;
    for (const auto& item : model->named_parameters()) {
      const auto& ours = item.key();
      has.emplace(ours, item.value().sizes().vec());
      const auto found = shapes_.find(ours);
      if (found == shapes_.end()) {
        if (is_wanted(ours)) json_["missing"].push_back(layout_name(ours, config.layout));
      } else if (found->second != item.value().sizes().vec()) {
        json_["misshapen"].push_back(names_[ours]);
      }
    }
    for (const auto& [ours, shape] : shapes_)
      if (is_wanted(ours) && !has.count(ours) && ours != "lm_head.weight")
        json_["unexpected"].push_back(names_[ours]);
  }

  Json take() { return std::move(json_); }

 private:
  Json json_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;  // by our name
  std::map<std::string, std::string> names_;                 // our name -> the file's
};

void describe(Report& report, const std::string& folder, const LlavaConfig& config) {
  report["family"] = family_of(config);
  report["template"] = choose_template(config, folder);
  report["parts"]["vision"] = vision_sizes(config.vision);
  report["parts"]["projector"] = projector_sizes(config);
  report["parts"]["text"] = text_sizes(config.text);
}

Json inspect_llava(const std::string& folder, const std::string& vision_tower) {
  const auto config = read_llava_config(folder, vision_tower);
  Report report(config.layout == Layout::hugging_face ? "llava-hf" : "llava");
  describe(report, folder, config);
  const auto state =
      weights::has_weights(folder) ? weights::load_folder(folder) : weights::StateDict{};
  report.count(state);
  // The original layout may leave the tower to its own folder.
  std::vector<std::string> wanted{"projector", "text"};
  const bool has_tower = report["parts"]["vision"]["num_parameters"] != 0;
  if (has_tower || config.layout == Layout::hugging_face) wanted.push_back("vision");
  if (!has_tower) report["parts"]["vision"]["from"] = config.vision_tower;
  report.compare(config, wanted);
  return report.take();
}

Json inspect_bare(const std::string& folder, Kind kind) {
  LlavaConfig config;
  Report report(kind == Kind::clip ? "clip" : "llama");
  if (kind == Kind::clip) {
    config.vision = read_clip_config(folder);
    report["family"] = "clip";
    report["parts"]["vision"] = vision_sizes(config.vision);
  } else {
    config.layout = Layout::original;  // whose language model has a bare Llama's names
    config.text = read_llama_config(folder);
    report["family"] = config.text.model_type;
    report["parts"]["text"] = text_sizes(config.text);
  }
  if (weights::has_weights(folder)) report.count(weights::load_folder(folder));
  report.compare(config, {kind == Kind::clip ? "vision" : "text"});
  return report.take();
}

Json inspect_addition(const std::string& folder, Kind kind, const std::string& vision_tower) {
  Report report(kind == Kind::peft ? "peft" : "projector");
  if (has_llava_config(folder)) describe(report, folder, read_llava_config(folder, vision_tower));
  if (kind == Kind::projector) {
    report.count(load_projector_file(folder));
    return report.take();
  }
  const auto adapter = read_adapter_config(folder);
  report.count(adapter_tensors(folder));
  report["lora"] = {{"r", adapter.lora.r},
                    {"lora_alpha", adapter.lora.alpha},
                    {"target_modules", adapter.target_modules},
                    {"base_model", adapter.base_model}};
  return report.take();
}

}  // namespace

Json inspect(const std::string& folder, const std::string& vision_tower) {
  switch (const auto kind = kind_of(folder)) {
    case Kind::llava: return inspect_llava(folder, vision_tower);
    case Kind::peft:
    case Kind::projector: return inspect_addition(folder, kind, vision_tower);
    case Kind::clip:
    case Kind::language: return inspect_bare(folder, kind);
  }
  return {};
}

}  // namespace llava::model
