// save_pretrained: a model as a folder that the layout's own readers load.
#include "folder_files.h"
#include "parts.h"

#include "llava/base/files.h"
#include "llava/model/layouts.h"
#include "llava/model/pretrained.h"
#include "llava/nn/lora.h"
#include "llava/nn/recompute.h"
#include "llava/weights/safetensors.h"

#include <algorithm>

namespace llava::model {
namespace {

using torch::Tensor;

constexpr std::int64_t kRowsMultiple = 64;  // Hugging Face's conversions pad vocabularies to this
constexpr std::int64_t kMostExtraRows = 128;

/// Gives a model the tokens that transformers needs for pictures; vocab_size grows where they are
/// new. Source: transformers, convert_llava_weights_to_hf.py,
/// convert_llava_next_video_weights_to_hf.py.
std::vector<AddedToken> add_image_tokens(LlavaConfig& config) {
  auto& text = config.text;
  const bool knows_image = config.image_token_id >= 0 && config.image_token_id < text.vocab_size;
  if (knows_image) {
    std::vector<AddedToken> tokens{{"<image>", config.image_token_id}};
    if (config.is_video) tokens.emplace_back("<video>", config.video_token_id);
    return tokens;
  }
  auto next = text.vocab_size;
  std::vector<AddedToken> tokens;
  if (config.is_video) tokens.emplace_back("<video>", config.video_token_id = next++);
  tokens.emplace_back("<image>", config.image_token_id = next++);
  tokens.emplace_back("<pad>", next++);
  config.source["original_vocab_size"] = text.vocab_size;
  config.source["pad_token_id"] = tokens.back().second;
  text.vocab_size = (next + kRowsMultiple - 1) / kRowsMultiple * kRowsMultiple;
  return tokens;
}

/// Rows of a vocabulary without the tokens that only transformers needs.
std::int64_t original_rows(const LlavaConfig& config) {
  const auto rows = config.text.vocab_size;
  if (config.layout == Layout::original) return rows;
  const auto remembered = config.source.find("original_vocab_size");
  if (config.source.is_object() && remembered != config.source.end() &&
      remembered->is_number_integer()) {
    const auto value = remembered->get<std::int64_t>();
    if (value >= 1 && value <= rows) return value;
  }
  auto first = config.image_token_id;
  if (config.is_video && config.video_token_id >= 0) first = std::min(first, config.video_token_id);
  return first >= 1 && first < rows && rows - first <= kMostExtraRows ? first : rows;
}

/// A table cut to `rows`, or grown by the mean of its rows.
Tensor with_rows(const Tensor& table, std::int64_t rows) {
  const auto old_rows = table.size(0);
  if (rows <= old_rows) return table.slice(0, 0, rows);
  const auto mean = table.to(torch::kFloat32).mean(0, /*keepdim=*/true).to(table.scalar_type());
  return torch::cat({table, mean.expand({rows - old_rows, -1})});
}

bool has_vocabulary_rows(const std::string& name) {
  return name == "llama.embed_tokens.weight" || name == "lm_head.weight";
}

weights::StateDict layout_state(Llava& model, const LlavaConfig& config, Layout layout) {
  weights::StateDict state;
  for (const auto& [name, linear] : nn::named_linears(*model))
    expect(!linear->packed, Fault::usage, name,
           " is packed for answers and cannot be saved; load the model without --bits");
  for (const auto& item : model->named_parameters()) {
    const auto& name = item.key();
    expect(name.find(".lora_") == std::string::npos, Fault::usage,
           "the model has unmerged LoRA weights; merge them, or save the adapter alone");
    const bool is_tower = name.starts_with("vision.");
    if (layout == Layout::original && is_tower && !config.tower_in_weights) continue;
    auto tensor = item.value().detach();
    if (has_vocabulary_rows(name) && tensor.size(0) != config.text.vocab_size)
      tensor = with_rows(tensor, config.text.vocab_size);
    state.add(layout_name(name, layout), tensor);
  }
  return state;
}

}  // namespace

std::string dtype_name(torch::ScalarType type) {
  switch (type) {
    case torch::kBFloat16: return "bfloat16";
    case torch::kFloat16: return "float16";
    case torch::kFloat64: return "float64";
    default: return "float32";
  }
}

void save_pretrained(const std::string& folder, Llava& model, Layout layout,
                     const std::string& tokenizer_folder) {
  torch::NoGradGuard no_grad;
  auto config = model->config;
  if (!config.source.is_object()) config.source = Json::object();
  config.torch_dtype = dtype_name(model->head_weight().scalar_type());
  // A tower that learned is no longer the public one.
  config.tower_in_weights |= nn::is_trainable(*model->vision);
  std::vector<AddedToken> added;
  const bool is_hugging_face = layout == Layout::hugging_face;
  if (is_hugging_face) {
    added = add_image_tokens(config);
  } else {
    config.text.vocab_size = original_rows(config);
  }
  auto json = is_hugging_face ? hugging_face_config(config) : original_config(config);
  for (const auto* key : {"original_vocab_size", "pad_token_id"})
    if (is_hugging_face && config.source.contains(key)) json[key] = config.source[key];

  make_folder(folder);
  weights::save_safetensors_folder(folder, layout_state(model, config, layout));
  if (is_hugging_face) {
    copy_tokenizer(tokenizer_folder, folder, added);
    write_file(folder + "/processor_config.json", json_text(processor_config(config)));
  } else {
    copy_tokenizer_cut(tokenizer_folder, folder, config.text.vocab_size);
  }
  write_file(folder + "/preprocessor_config.json", json_text(preprocessor_config(config)));
  write_file(folder + "/generation_config.json", json_text(generation_config(config)));
  write_file(folder + "/config.json", json_text(json));
}

}  // namespace llava::model
