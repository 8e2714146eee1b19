#include "parts.h"

#include <algorithm>

namespace llava::model {
namespace {

/// Values of a key that a file leaves out. Source: transformers 5.24, configuration_llama.py,
/// configuration_mistral.py, configuration_qwen2.py.
LlamaConfig class_defaults(const std::string& model_type) {
  LlamaConfig config;
  config.model_type = model_type;
  config.bos_token_id = 1;
  config.eos_token_ids = {2};
  if (model_type == "mistral") {
    config.intermediate_size = 14336;
    config.num_key_value_heads = 8;
    config.max_position_embeddings = 131072;
    config.sliding_window = 4096;
  }
  if (model_type == "qwen2") {
    config.vocab_size = 151936;
    config.intermediate_size = 22016;
    config.max_position_embeddings = 32768;
    config.sliding_window = 4096;
    config.bos_token_id = std::nullopt;
    config.eos_token_ids.clear();
  }
  return config;
}

void read_rope(const Keys& keys, LlamaConfig& config) {
  // transformers 5 writes rope_parameters in place of rope_theta and rope_scaling.
  const auto* parameters = keys.find("rope_parameters");
  const auto* scaling = parameters ? parameters : keys.find("rope_scaling");
  config.rope_theta = keys.positive("rope_theta", config.rope_theta);
  if (!scaling) return;
  const Keys rope(*scaling, keys.where(parameters ? "rope_parameters" : "rope_scaling"));
  config.rope_theta = rope.positive("rope_theta", config.rope_theta);
  const auto* key = rope.has("rope_type") ? "rope_type" : "type";
  const auto type = rope.word(key, "default", {"default", "linear", "dynamic", "llama3"});
  expect(rope.get<double>("partial_rotary_factor", 1.0) == 1.0, Fault::data,
         rope.where("partial_rotary_factor"), ": rotating a part of each head is not supported");
  if (type == "default") return;
  RopeScaling read{.type = type};
  expect(rope.has("factor"), Fault::data, rope.where(), ": \"factor\" is missing");
  read.factor = rope.positive("factor", 1);
  if (type == "llama3") {
    for (const auto* needed : {"low_freq_factor", "high_freq_factor"})
      expect(rope.has(needed), Fault::data, rope.where(), ": \"", needed, "\" is missing");
    read.low_freq_factor = rope.positive("low_freq_factor", 1);
    read.high_freq_factor = rope.positive("high_freq_factor", 4);
    expect(read.high_freq_factor > read.low_freq_factor, Fault::data, rope.where(),
           ": high_freq_factor must exceed low_freq_factor");
    read.original_max_position_embeddings =
        rope.size("original_max_position_embeddings", config.max_position_embeddings);
  }
  config.rope_scaling = read;
}

/// 0 unless some layer of the model has a window.
std::int64_t read_sliding_window(const Keys& keys, const LlamaConfig& config) {
  if (config.model_type == "llama" || keys.is_null("sliding_window")) return 0;
  const auto window = keys.size("sliding_window", config.sliding_window);
  if (config.model_type == "mistral") return window;
  if (!keys.get<bool>("use_sliding_window", false)) return 0;
  const auto* types = keys.find("layer_types");
  if (types && types->is_array())
    return std::find(types->begin(), types->end(), "sliding_attention") == types->end() ? 0
                                                                                        : window;
  return keys.get<std::int64_t>("max_window_layers", 28) < config.num_hidden_layers ? window : 0;
}

/// Ids from this object, else from the one around it, else the class's.
void read_special_tokens(const Keys& keys, const Keys& outer, LlamaConfig& config) {
  const auto& eos = keys.has("eos_token_id") ? keys : outer;
  config.eos_token_ids = eos.numbers("eos_token_id", config.eos_token_ids);
  check_ends(config, eos.where("eos_token_id"));
  const auto token = [&](const char* key, std::optional<std::int64_t> otherwise) {
    if (keys.has(key) || keys.is_null(key)) return keys.token(key);
    if (const auto id = outer.token(key)) return id;
    return otherwise;
  };
  config.bos_token_id = token("bos_token_id", config.bos_token_id);
  config.pad_token_id = token("pad_token_id", config.pad_token_id);
}

}  // namespace

void check_ends(const LlamaConfig& config, const std::string& where) {
  for (const auto id : config.eos_token_ids)
    expect(id >= 0 && id < config.vocab_size, Fault::data, where, " is ", id,
           " but the vocabulary has ", config.vocab_size, " tokens");
}

LlamaConfig read_text(const Keys& keys, const Keys& outer, const std::string& model_type) {
  const std::vector<std::string> known{"llama", "mistral", "qwen2"};
  expect(std::find(known.begin(), known.end(), model_type) != known.end(), Fault::data,
         keys.where("model_type"), " is \"", model_type,
         "\"; this program has llama, mistral and qwen2 as language models");
  auto config = class_defaults(model_type);
  config.vocab_size = keys.size("vocab_size", config.vocab_size);
  config.hidden_size = keys.size("hidden_size", config.hidden_size);
  config.intermediate_size = keys.size("intermediate_size", config.intermediate_size);
  config.num_hidden_layers = keys.size("num_hidden_layers", config.num_hidden_layers, kMostLayers);
  config.num_attention_heads = keys.size("num_attention_heads", config.num_attention_heads);
  const auto kv_default =
      model_type == "llama" ? config.num_attention_heads : config.num_key_value_heads;
  config.num_key_value_heads = keys.size("num_key_value_heads", kv_default);
  expect(config.num_attention_heads % config.num_key_value_heads == 0, Fault::data, keys.where(),
         ": num_attention_heads ", config.num_attention_heads,
         " is no multiple of num_key_value_heads ", config.num_key_value_heads);
  expect(keys.has("head_dim") || config.hidden_size % config.num_attention_heads == 0, Fault::data,
         keys.where(), ": hidden_size ", config.hidden_size,
         " is no multiple of num_attention_heads ", config.num_attention_heads,
         ", and head_dim is missing");
  config.head_dim = keys.size("head_dim", config.hidden_size / config.num_attention_heads);
  expect(config.head_dim % 2 == 0, Fault::data, keys.where(), ": a head of ", config.head_dim,
         " numbers cannot be rotated in pairs");
  config.max_position_embeddings =
      keys.size("max_position_embeddings", config.max_position_embeddings);
  config.rms_norm_eps = keys.positive("rms_norm_eps", config.rms_norm_eps);
  keys.word("hidden_act", "silu", {"silu", "swish"});
  read_rope(keys, config);
  config.sliding_window = read_sliding_window(keys, config);
  const bool has_bias = keys.get<bool>("attention_bias", false);
  config.attention_bias = model_type == "qwen2" || (model_type == "llama" && has_bias);
  config.attention_output_bias = model_type == "llama" && has_bias;
  config.mlp_bias = model_type == "llama" && keys.get<bool>("mlp_bias", false);
  config.tie_word_embeddings = keys.get<bool>("tie_word_embeddings", false);
  read_special_tokens(keys, outer, config);
  return config;
}

void write_text(const LlamaConfig& config, Json& json) {
  json["model_type"] = config.model_type;
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_key_value_heads"] = config.num_key_value_heads;
  json["head_dim"] = config.head_dim;
  json["hidden_act"] = "silu";
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  // The older spelling, which every version of transformers reads.
  json.erase("rope_parameters");
  json["rope_theta"] = config.rope_theta;
  json["rope_scaling"] = nullptr;
  if (config.rope_scaling) {
    const auto& scaling = *config.rope_scaling;
    Json rope{{"type", scaling.type}, {"rope_type", scaling.type}, {"factor", scaling.factor}};
    if (scaling.type == "llama3") {
      rope["low_freq_factor"] = scaling.low_freq_factor;
      rope["high_freq_factor"] = scaling.high_freq_factor;
      rope["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
    }
    json["rope_scaling"] = rope;
  }
  if (config.model_type == "llama") {
    json["attention_bias"] = config.attention_bias;
    json["mlp_bias"] = config.mlp_bias;
  }
  if (config.model_type == "mistral")
    json["sliding_window"] = config.sliding_window > 0 ? Json(config.sliding_window) : Json();
  if (config.model_type == "qwen2" && config.sliding_window == 0)
    json["use_sliding_window"] = false;
  const auto optional = [](const std::optional<std::int64_t>& id) {
    return id ? Json(*id) : Json();
  };
  json["bos_token_id"] = optional(config.bos_token_id);
  json["pad_token_id"] = optional(config.pad_token_id);
  const auto& eos = config.eos_token_ids;
  json["eos_token_id"] = eos.empty() ? Json() : eos.size() == 1 ? Json(eos[0]) : Json(eos);
}

}  // namespace llava::model
