#include "llava/train/stage.h"

#include "llava/base/config.h"
#include "llava/model/adapter.h"
#include "llava/nn/lora.h"

#include <algorithm>
#include <cstdio>
#include <set>

namespace llava::train {
namespace {

bool begins_with(const std::string& text, std::string_view start) {
  return text.rfind(start, 0) == 0;
}

std::string part_of(const std::string& name) {
  if (begins_with(name, "vision.")) return "vision";
  return begins_with(name, "projector.") ? "projector" : "llm";
}

bool is_lora(const std::string& name) { return name.find(".lora_") != std::string::npos; }

/// Norms and biases: transformers' get_decay_parameter_names, by the names of all our modules.
bool has_decay(const std::string& name) {
  return name.find("bias") == std::string::npos && name.find("norm") == std::string::npos;
}

/// Whether a parameter of the tower takes part in the features of the selected layers.
bool reaches_features(const std::string& name, const model::LlavaConfig& config) {
  if (begins_with(name, "vision.post_layernorm")) return false;
  constexpr std::string_view layers = "vision.encoder.layers.";
  if (!begins_with(name, layers)) return true;
  std::int64_t used = 0;  // entry i of the hidden states follows block i
  for (const auto entry : config.feature_layers)
    used = std::max(used, entry < 0 ? config.vision.num_hidden_layers + 1 + entry : entry);
  return std::stoll(name.substr(layers.size())) < used;
}

Tuning read_tuning(const std::string& part, const std::string& word) {
  if (word == "none") return Tuning::none;
  if (word == "full") return Tuning::full;
  expect(word == "lora" && part == "llm", Fault::usage, "--tune: ", part, " cannot be \"", word,
         "\"; take none or full", part == "llm" ? " or lora" : "");
  return Tuning::lora;
}

std::string count_text(std::int64_t count) {
  char text[32];
  if (count >= 10'000'000) {
    std::snprintf(text, sizeof text, "%.1f M", static_cast<double>(count) / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(count));
  }
  return text;
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace

Tune read_tune(const StageConfig& config) {
  expect(
      !(config.tune_mm_mlp_adapter && config.lora_enable), Fault::usage,
      "--tune_mm_mlp_adapter trains the projector alone and --lora_enable the LLM too; give one, "
      "or say what learns with --tune");
  Tune tune;
  if (config.tune_mm_mlp_adapter) tune.llm = Tuning::none;
  if (config.lora_enable) tune.llm = Tuning::lora;
  std::set<std::string> seen;
  for (const auto& item : split_list(config.tune)) {
    const auto equals = item.find('=');
    const std::string part = item.substr(0, equals);
    expect(equals != std::string::npos, Fault::usage, "--tune: expected part=none|full, found \"",
           item, "\"");
    expect(part == "vision" || part == "projector" || part == "llm", Fault::usage,
           "--tune: there is no part \"", part, "\"",
           suggestion(part, {"vision", "projector", "llm"}),
           "; parts are vision, projector and llm");
    expect(seen.insert(part).second, Fault::usage, "--tune names ", part, " twice");
    const Tuning tuning = read_tuning(part, item.substr(equals + 1));
    (part == "vision" ? tune.vision : part == "projector" ? tune.projector : tune.llm) = tuning;
  }
  expect(tune.vision != Tuning::none || tune.projector != Tuning::none || tune.llm != Tuning::none,
         Fault::usage, "--tune: nothing learns; give a part full, or the llm lora");
  const bool has_lora = tune.llm == Tuning::lora;
  expect(!has_lora || config.lora_r > 0, Fault::usage, "--lora_r: ", config.lora_r,
         " is not a rank; take a positive number");
  expect(!has_lora || (config.lora_dropout >= 0 && config.lora_dropout < 1), Fault::usage,
         "--lora_dropout: expected a share from 0 to below 1, found ", config.lora_dropout);
  return tune;
}

std::vector<ParameterGroup> choose_stage(model::Llava& model, const StageConfig& config,
                                         double learning_rate, double weight_decay,
                                         std::uint64_t seed) {
  const Tune tune = read_tune(config);
  const auto linears = nn::named_linears(*model);
  const bool has_lora = std::any_of(linears.begin(), linears.end(),
                                    [](const auto& entry) { return entry.second->has_lora(); });
  expect(!has_lora || tune.llm == Tuning::lora, Fault::usage,
         "the model has a LoRA adapter, but the llm does not learn by LoRA; merge it first with "
         "llava convert, or give --lora_enable");
  if (tune.llm == Tuning::lora && !has_lora) {
    const nn::LoraConfig lora{
        .r = config.lora_r, .alpha = config.lora_alpha, .dropout = config.lora_dropout};
    nn::attach_lora(*model, model::is_lora_target, lora, seed);
  }

  // Parts in this order; each as one group with decay and one without.
  std::vector<ParameterGroup> groups;
  for (const std::string part : {"vision", "projector", "llm"}) {
    const Tuning tuning = part == "vision"      ? tune.vision
                          : part == "projector" ? tune.projector
                                                : tune.llm;
    double rate = learning_rate;
    if (part == "projector") rate = config.mm_projector_lr.value_or(rate);
    if (part == "vision") rate = config.mm_vision_tower_lr.value_or(rate);
    ParameterGroup decayed{part, rate, weight_decay, {}}, plain{part, rate, 0, {}};
    for (auto& item : model->named_parameters()) {
      const std::string& name = item.key();
      if (part_of(name) != part) continue;
      // With LoRA the newline is the one tensor of the LLM that learns in full.
      const bool learns = tuning == Tuning::full ? reaches_features(name, model->config)
                                                 : tuning == Tuning::lora &&
                                                       (is_lora(name) || name == "image_newline");
      item.value().set_requires_grad(learns);
      if (learns) (has_decay(name) ? decayed : plain).parameters.emplace_back(name, item.value());
    }
    for (auto* group : {&decayed, &plain})
      if (!group->parameters.empty()) groups.push_back(std::move(*group));
  }
  expect(!groups.empty(), Fault::usage, "nothing learns: the model has no ",
         tune.projector == Tuning::full ? "projector weights" : "weights of the chosen parts",
         "; choose another part with --tune");
  return groups;
}

std::vector<ParameterGroup> owned_groups(dist::GradientSync& sync,
                                         std::vector<ParameterGroup> groups) {
  std::vector<dist::NamedTensors> parameters;
  for (const auto& group : groups) parameters.push_back(group.parameters);
  auto owned = sync.owned(parameters);
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].parameters = std::move(owned[i]);
  return groups;
}

std::string describe_stage(const model::Llava& model, const StageConfig& config,
                           const std::vector<ParameterGroup>& groups) {
  const Tune tune = read_tune(config);
  std::string table =
      "what learns:\n  part       how     parameters  learning rate  weight decay  dtype\n";
  const auto row = [&](const std::string& part, const char* how, std::int64_t count,
                       const std::string& rate, const std::string& decay,
                       const std::string& dtype) {
    char line[160];
    std::snprintf(line, sizeof line, "  %-10s %-7s %10s  %13s  %12s  %s\n", part.c_str(), how,
                  count_text(count).c_str(), rate.c_str(), decay.c_str(), dtype.c_str());
    table += line;
  };
  std::int64_t learning = 0, total = 0;
  for (const std::string part : {"vision", "projector", "llm"}) {
    const Tuning tuning = part == "vision"      ? tune.vision
                          : part == "projector" ? tune.projector
                                                : tune.llm;
    std::int64_t frozen = 0;
    std::string frozen_type;
    for (const auto& item : model->named_parameters()) {
      if (part_of(item.key()) != part) continue;
      total += item.value().numel();
      if (item.value().requires_grad()) continue;
      frozen += item.value().numel();
      frozen_type = c10::toString(item.value().scalar_type());
    }
    for (const auto& group : groups) {
      if (group.part != part) continue;
      std::int64_t count = 0;
      for (const auto& [name, parameter] : group.parameters) count += parameter.numel();
      learning += count;
      const auto type = group.parameters[0].second.scalar_type();
      row(part, tuning == Tuning::lora ? "lora" : "full", count, number_text(group.learning_rate),
          number_text(group.weight_decay),
          std::string(c10::toString(type)) + (type == torch::kFloat32 ? "" : ", fp32 masters"));
    }
    if (frozen) row(part, "frozen", frozen, "-", "-", frozen_type);
  }
  char line[160];
  std::snprintf(line, sizeof line, "  %s of %s parameters learn (%.2f %%)",
                count_text(learning).c_str(), count_text(total).c_str(),
                100.0 * static_cast<double>(learning) /
                    static_cast<double>(std::max<std::int64_t>(1, total)));
  return table + line;
}

}  // namespace llava::train
