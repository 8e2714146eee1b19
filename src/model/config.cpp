#include "llava/model/config.h"

#include "parts.h"

#include <algorithm>
#include <filesystem>

namespace llava::model {
namespace {

using Grids = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// Source: transformers, configuration_llava_next.py; the released LLaVA-1.6 configs.
const Grids kNextGrids{{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};

/// generation_config.json knows more tokens that end an answer than config.json does.
void read_generation_config(const std::string& folder, LlamaConfig& config) {
  const auto path = folder + "/generation_config.json";
  if (!is_file(path)) return;
  const auto json = read_json(path);
  const Keys keys(json, path);
  config.eos_token_ids = keys.numbers("eos_token_id", config.eos_token_ids);
  check_ends(config, keys.where("eos_token_id"));
}

media::MergeConfig::Pool pool_named(const Keys& keys, const char* key) {
  const auto mode = keys.word(key, "average", {"average", "max", "bilinear"});
  return mode == "average" ? media::MergeConfig::Pool::average
         : mode == "max"   ? media::MergeConfig::Pool::max
                           : media::MergeConfig::Pool::bilinear;
}

void check_feature_layers(const LlavaConfig& config, const std::string& where) {
  expect(!config.feature_layers.empty(), Fault::data, where, " lists no layer");
  const auto states = config.vision.num_hidden_layers + 1;
  for (const auto layer : config.feature_layers)
    expect(layer >= -states && layer < states, Fault::data, where, ": there is no hidden state ",
           layer, ", the tower has ", config.vision.num_hidden_layers, " layers");
}

void finish(const Keys& keys, LlavaConfig& config) {
  config.merge.side = config.vision.side();
  config.merge.class_token = config.feature_select == "cls_patch";
  config.merge.class_only = config.feature_select == "cls";
  config.torch_dtype = keys.get<std::string>("torch_dtype", keys.get<std::string>("dtype", ""));
  config.conversation = keys.get<std::string>("conv_mode", "");
}

LlavaConfig read_hugging_face(const std::string& folder, const Json& json) {
  const Keys keys(json, folder + "/config.json");
  const Json empty = Json::object();
  LlavaConfig config;
  config.layout = Layout::hugging_face;
  const auto family = keys.word("model_type", "", {"llava", "llava_next", "llava_next_video"});
  const auto* vision = keys.find("vision_config");
  config.vision =
      vision ? read_vision(Keys(*vision, keys.where("vision_config"))) : clip_large(336);
  const auto* text_json = keys.find("text_config");
  const Keys text(text_json ? *text_json : empty, keys.where("text_config"));
  config.text = read_text(text, keys, text.get<std::string>("model_type", "llama"));
  config.text.tie_word_embeddings |= keys.get<bool>("tie_word_embeddings", false);
  read_generation_config(folder, config.text);

  config.projector_type = "mlp2x_gelu";
  config.projector_act =
      keys.word("projector_hidden_act", "gelu",
                {"gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu", "linear"});
  config.projector_bias = keys.get<bool>("multimodal_projector_bias", true);
  config.feature_layers = keys.numbers("vision_feature_layer", {-2});
  check_feature_layers(config, keys.where("vision_feature_layer"));
  const auto strategy = keys.word("vision_feature_select_strategy", "default", {"default", "full"});
  config.feature_select = strategy == "default" ? "patch" : "cls_patch";

  config.is_video = family == "llava_next_video";
  const auto token = [&](const char* index, const char* id, std::int64_t otherwise) {
    return keys.token(index).value_or(keys.token(id).value_or(otherwise));
  };
  config.image_token_id =
      token("image_token_index", "image_token_id", config.is_video ? 32001 : 32000);
  if (config.is_video) config.video_token_id = token("video_token_index", "video_token_id", 32000);

  const bool pads = read_preprocessor(folder, config.vision, config.tiling);
  config.tiling.aspect = pads ? media::Aspect::pad : media::Aspect::square;
  config.merge.hugging_face = true;
  if (family != "llava") {
    config.tiling.aspect = media::Aspect::anyres;
    config.tiling.height_first = true;
    config.tiling.pinpoints = read_grids(keys, config.tiling.tile);
    if (!keys.has("image_grid_pinpoints")) config.tiling.pinpoints = kNextGrids;
    config.merge.spatial = config.merge.unpad = config.has_newline = true;
  }
  config.merge.video_stride = keys.size("spatial_pool_stride", 2, config.vision.side());
  config.merge.video_pool = pool_named(keys, "spatial_pool_mode");
  // Left by a conversion from the original layout, so that the way back restores it.
  config.vision_tower = keys.get<std::string>("mm_vision_tower", "");
  config.tower_in_weights = keys.get<bool>("unfreeze_mm_vision_tower", true);
  config.max_length = keys.get<std::int64_t>("tokenizer_model_max_length", 0);
  finish(keys, config);
  config.source = json;
  return config;
}

/// image_aspect_ratio and mm_patch_merge_type of an original config.
void read_original_tiling(const Keys& keys, LlavaConfig& config) {
  const auto aspect = keys.get<std::string>("image_aspect_ratio", "square");
  const std::string_view capped = "anyres_max_";
  auto& tiling = config.tiling;
  if (aspect == "square") {
    tiling.aspect = media::Aspect::square;
  } else if (aspect == "pad") {
    tiling.aspect = media::Aspect::pad;
  } else if (aspect == "anyres" || aspect.starts_with(capped)) {
    tiling.aspect = media::Aspect::anyres;
    tiling.pinpoints = read_grids(keys, tiling.tile);
    expect(!tiling.pinpoints.empty(), Fault::data, keys.where(), ": image_aspect_ratio is \"",
           aspect, "\" but \"image_grid_pinpoints\" is missing");
    if (aspect != "anyres") {
      const auto digits = aspect.substr(capped.size());
      const bool is_number = !digits.empty() && digits.size() <= 4 &&
                             digits.find_first_not_of("0123456789") == std::string::npos;
      expect(is_number && std::stoll(digits) > 0, Fault::data, keys.where("image_aspect_ratio"),
             " is \"", aspect, "\"; expected anyres_max_N with N above 0");
      config.merge.max_tiles = std::stoll(digits);
    }
  } else {
    fail(Fault::data, keys.where("image_aspect_ratio"), " is \"", aspect,
         "\"; this program has square, pad, anyres and anyres_max_N");
  }
  const auto merge = keys.word("mm_patch_merge_type", "flat", {"flat", "spatial", "spatial_unpad"});
  config.merge.spatial = merge != "flat";
  config.merge.unpad = config.has_newline = merge == "spatial_unpad";
}

/// LLaVA-NeXT-Video's release pools before the projector and puts no newline; later code (config
/// without mm_resampler_type spatial_pool) projects first and places newlines.
void read_original_video(const Keys& keys, LlavaConfig& config) {
  using Newline = media::MergeConfig::Newline;
  const bool pools_first = keys.get<std::string>("mm_resampler_type", "") == "spatial_pool";
  config.is_video = pools_first || keys.has("mm_newline_position");
  config.merge.pool_before_projector = pools_first;
  config.merge.video_stride =
      pools_first ? keys.size("mm_spatial_pool_stride", 2, config.vision.side()) : 2;
  config.merge.video_pool = pool_named(keys, "mm_spatial_pool_mode");
  const auto newline = keys.word("mm_newline_position", pools_first ? "no_token" : "one_token",
                                 {"no_token", "one_token", "frame", "grid"});
  const auto wanted = newline == "no_token"    ? Newline::none
                      : newline == "one_token" ? Newline::one
                      : newline == "frame"     ? Newline::frame
                                               : Newline::grid;
  config.merge.video_newline = config.has_newline ? wanted : Newline::none;
}

/// The tower's folder: as it is named, or inside the model's folder; "" when it is neither.
std::string tower_folder(const std::string& folder, const std::string& name) {
  if (name.empty()) return "";
  if (is_folder(name)) return name;
  return is_folder(folder + "/" + name) ? folder + "/" + name : "";
}

LlavaConfig read_original(const std::string& folder, const Json& json,
                          const std::string& tower_override) {
  const Keys keys(json, folder + "/config.json");
  LlavaConfig config;
  config.layout = Layout::original;
  config.vision_tower =
      keys.get<std::string>("mm_vision_tower", keys.get<std::string>("vision_tower", ""));
  const auto tower =
      tower_folder(folder, tower_override.empty() ? config.vision_tower : tower_override);
  expect(tower_override.empty() || !tower.empty(), Fault::data, tower_override,
         ": there is no such folder of a vision tower");
  const auto known = public_tower(config.vision_tower);
  if (!tower.empty()) {
    config.vision = read_clip_config(tower);
  } else if (const auto* own = keys.find("mm_vision_config")) {
    config.vision = read_vision(Keys(*own, keys.where("mm_vision_config")));
  } else {
    expect(known.has_value(), Fault::data, keys.where("mm_vision_tower"), " is \"",
           config.vision_tower,
           "\", which is no folder here; name the tower's folder with "
           "--vision_tower DIR");
    config.vision = *known;
  }
  if (!tower.empty()) config.vision_tower = lasting_path(tower);

  const auto type = keys.get<std::string>("model_type", "llava");
  std::string architecture;
  if (const auto* list = keys.find("architectures"); list && list->is_array() && !list->empty())
    architecture = (*list)[0].is_string() ? (*list)[0].get<std::string>() : "";
  const auto means = [&](const char* word, const char* name) {
    return type.find(word) != std::string::npos || architecture.find(name) != std::string::npos;
  };
  config.text = read_text(keys, keys,
                          means("mistral", "Mistral") ? "mistral"
                          : means("qwen", "Qwen")     ? "qwen2"
                          : means("mpt", "Mpt")       ? "mpt"
                                                      : "llama");
  read_generation_config(folder, config.text);

  config.projector_type = keys.get<std::string>("mm_projector_type", "linear");
  expect(keys.has("mm_vision_select_layer"), Fault::data, keys.where(),
         ": \"mm_vision_select_layer\" is missing; LLaVA's models have -2");
  config.feature_layers = keys.numbers("mm_vision_select_layer", {});
  check_feature_layers(config, keys.where("mm_vision_select_layer"));
  config.feature_select =
      keys.word("mm_vision_select_feature", "patch", {"patch", "cls_patch", "cls"});
  const auto width =
      config.vision.hidden_size * static_cast<std::int64_t>(config.feature_layers.size());
  expect(keys.get<std::int64_t>("mm_hidden_size", width) == width, Fault::data,
         keys.where("mm_hidden_size"), " is ", keys.get<std::int64_t>("mm_hidden_size", width),
         " but the vision tower gives ", width, " numbers; is it the right tower?");
  expect(!keys.get<bool>("s2", false), Fault::data, keys.where("s2"),
         ": towers of several scales are not supported");

  read_preprocessor(tower.empty() ? folder : tower, config.vision, config.tiling);
  read_original_tiling(keys, config);
  read_original_video(keys, config);
  config.image_start_end = keys.get<bool>("mm_use_im_start_end", false);
  const auto tunable = keys.get<std::string>("mm_tunable_parts", "");
  config.tower_in_weights = keys.get<bool>("unfreeze_mm_vision_tower", false) ||
                            tunable.find("mm_vision_tower") != std::string::npos;
  config.max_length = keys.get<std::int64_t>("tokenizer_model_max_length",
                                             keys.get<std::int64_t>("max_sequence_length", 0));
  expect(config.max_length >= 0 && config.max_length <= kLargestSize, Fault::data,
         keys.where("tokenizer_model_max_length"), " is out of range");
  finish(keys, config);
  config.source = json;
  return config;
}

}  // namespace

std::string settings_folder(const std::string& folder) {
  const auto inside = folder + "/" + kAdapterSettings;
  return !is_file(folder + "/config.json") && is_file(inside + "/config.json") ? inside : folder;
}

LlavaConfig read_llava_config(const std::string& place, const std::string& vision_tower) {
  const auto folder = settings_folder(place);
  const auto path = folder + "/config.json";
  const auto json = read_json(path);
  const Keys keys(json, path);
  if (keys.has("vision_config") || keys.has("text_config")) return read_hugging_face(folder, json);
  if (keys.has("mm_vision_tower") || keys.has("vision_tower") || keys.has("mm_projector_type"))
    return read_original(folder, json, vision_tower);
  const auto type = keys.get<std::string>("model_type", "");
  if (type == "llava" || type == "llava_next" || type == "llava_next_video")
    return read_hugging_face(folder, json);
  fail(Fault::data, path, ": this is no LLaVA model (model_type \"", type,
       "\", without vision_config and mm_vision_tower); `llava init` makes one from a vision tower "
       "and a language model");
}

bool has_llava_config(const std::string& folder) {
  const auto path = settings_folder(folder) + "/config.json";
  if (!is_file(path)) return false;
  const auto json = read_json(path);
  if (!json.is_object()) return false;
  for (const auto* key : {"vision_config", "text_config", "mm_vision_tower", "mm_projector_type"})
    if (json.contains(key)) return true;
  const auto type = json.value("model_type", Json());
  return type.is_string() && type.get<std::string>().starts_with("llava");
}

std::string lasting_path(const std::string& folder) {
  std::error_code error;
  const auto path = std::filesystem::canonical(folder, error);
  return error || !is_folder(folder) ? folder : path.string();
}

std::string base_named_by(const std::string& folder) {
  const auto path = folder + "/config.json";
  if (!is_file(path)) return "";
  const auto json = read_json(path);
  return Keys(json, path).get<std::string>("_name_or_path", "");
}

ClipVisionConfig read_clip_config(const std::string& folder) {
  const auto path = folder + "/config.json";
  const auto json = read_json(path);
  const Keys keys(json, path);
  for (const auto* key : {"vision_config", "vision_config_dict"})  // a CLIP, or a whole LLaVA
    if (const auto* vision = keys.find(key)) return read_vision(Keys(*vision, keys.where(key)));
  const auto type = keys.word("model_type", "clip_vision_model", {"clip", "clip_vision_model"});
  if (type == "clip_vision_model") return read_vision(keys);
  fail(Fault::data, path, ": \"vision_config\" is missing");
}

LlamaConfig read_llama_config(const std::string& folder) {
  const auto path = folder + "/config.json";
  const auto json = read_json(path);
  const Keys keys(json, path);
  if (const auto* text = keys.find("text_config")) {  // a whole Hugging Face LLaVA's
    const Keys inner(*text, keys.where("text_config"));
    auto config = read_text(inner, keys, inner.get<std::string>("model_type", "llama"));
    read_generation_config(folder, config);
    return config;
  }
  expect(keys.has("model_type"), Fault::data, path, ": \"model_type\" is missing");
  auto config = read_text(keys, keys, keys.get<std::string>("model_type", ""));
  read_generation_config(folder, config);
  return config;
}

namespace {

/// Keys that belong to a whole LLaVA in the original's files; Hugging Face's keep them unread, so
/// that a conversion back loses nothing.
bool is_original_key(const std::string& key) {
  static constexpr std::string_view kOthers[] = {"image_aspect_ratio",
                                                 "image_crop_resolution",
                                                 "image_split_resolution",
                                                 "unfreeze_mm_vision_tower",
                                                 "tune_mm_mlp_adapter",
                                                 "tune_mm_vision_resampler",
                                                 "freeze_mm_mlp_adapter",
                                                 "freeze_mm_vision_tower",
                                                 "use_mm_proj",
                                                 "tokenizer_padding_side",
                                                 "tokenizer_model_max_length",
                                                 "max_sequence_length",
                                                 "conv_mode"};
  return key.starts_with("mm_") ||
         std::find(std::begin(kOthers), std::end(kOthers), key) != std::end(kOthers);
}

/// What a config.json in `layout` starts from: the file as read, or of the other layout's file
/// what is no part's own.
Json kept_keys(const LlavaConfig& config, Layout layout) {
  if (!config.source.is_object()) return Json::object();
  if (config.layout == layout) return config.source;
  Json kept = Json::object();
  for (const auto& [key, value] : config.source.items())
    if (is_original_key(key)) kept[key] = value;
  return kept;
}

Json number_or_list(const std::vector<std::int64_t>& numbers) {
  return numbers.size() == 1 ? Json(numbers[0]) : Json(numbers);
}

const char* pool_name(media::MergeConfig::Pool pool) {
  switch (pool) {
    case media::MergeConfig::Pool::average: return "average";
    case media::MergeConfig::Pool::max: return "max";
    case media::MergeConfig::Pool::bilinear: return "bilinear";
  }
  return "average";
}

/// Throws unless a Hugging Face class computes what this model does.
void expect_in_hugging_face(const LlavaConfig& config) {
  const auto need = [](bool ok, const std::string& what) {
    expect(ok, Fault::data, "the Hugging Face layout has no ", what,
           "; save in the original layout (--to llava)");
  };
  const bool is_anyres = config.tiling.aspect == media::Aspect::anyres;
  need(config.projector_type == "mlp2x_gelu", "\"" + config.projector_type + "\" projector");
  need(config.feature_select != "cls", "models of the class token alone");
  need(!config.image_start_end, "tokens around an image (mm_use_im_start_end)");
  need(config.merge.max_tiles == 0, "anyres_max_N");
  need(config.merge.unpad == is_anyres && config.merge.spatial == is_anyres,
       "mix of image_aspect_ratio and mm_patch_merge_type like this model's");
  if (!config.is_video) return;
  need(is_anyres && config.merge.pool_before_projector, "video model that pools after projecting");
  need(config.merge.video_newline == media::MergeConfig::Newline::none, "newline in videos");
  need(config.merge.video_pool != media::MergeConfig::Pool::bilinear, "bilinear pooling");
}

}  // namespace

Json hugging_face_config(const LlavaConfig& config) {
  expect_in_hugging_face(config);
  const bool is_next = config.merge.unpad;
  auto json = kept_keys(config, Layout::hugging_face);
  json["architectures"] = {config.is_video ? "LlavaNextVideoForConditionalGeneration"
                           : is_next       ? "LlavaNextForConditionalGeneration"
                                           : "LlavaForConditionalGeneration"};
  json["model_type"] = config.is_video ? "llava_next_video" : is_next ? "llava_next" : "llava";
  for (const auto* part : {"vision_config", "text_config"})
    if (!json.contains(part) || !json[part].is_object()) json[part] = Json::object();
  write_vision(config.vision, json["vision_config"]);
  write_text(config.text, json["text_config"]);
  json.erase("image_token_id");
  json["image_token_index"] = config.image_token_id;
  if (config.is_video) {
    json.erase("video_token_id");
    json["video_token_index"] = config.video_token_id;
    json["spatial_pool_mode"] = pool_name(config.merge.video_pool);
    json["spatial_pool_stride"] = config.merge.video_stride;
    json["spatial_pool_out_channels"] = config.vision.hidden_size;
  }
  if (is_next) {
    json["image_grid_pinpoints"] = grids_for(config, /*height_first=*/true);
    json["use_image_newline_parameter"] = true;
  }
  json["projector_hidden_act"] = config.projector_act;
  json["multimodal_projector_bias"] = config.projector_bias;
  json["vision_feature_layer"] = number_or_list(config.feature_layers);
  json["vision_feature_select_strategy"] = config.feature_select == "patch" ? "default" : "full";
  json["image_seq_length"] =
      config.vision.side() * config.vision.side() + (config.merge.class_token ? 1 : 0);
  json["tie_word_embeddings"] = config.text.tie_word_embeddings;
  json.erase("dtype");
  json["torch_dtype"] = config.torch_dtype;
  if (!json.contains("pad_token_id")) json["pad_token_id"] = json["text_config"]["pad_token_id"];
  if (config.layout == Layout::original) {
    json["mm_vision_tower"] = config.vision_tower;
    json["unfreeze_mm_vision_tower"] = config.tower_in_weights;
  }
  if (!config.conversation.empty()) json["conv_mode"] = config.conversation;
  return json;
}

Json original_config(const LlavaConfig& config) {
  expect(config.projector_bias && config.projector_act == "gelu", Fault::data,
         "the original layout has no projector without biases or with an activation other than "
         "gelu; use --to llava-hf");
  const auto family = config.text.model_type;
  auto json = kept_keys(config, Layout::original);
  json["architectures"] = {family == "mistral" ? "LlavaMistralForCausalLM"
                           : family == "qwen2" ? "LlavaQwenForCausalLM"
                                               : "LlavaLlamaForCausalLM"};
  write_text(config.text, json);
  json["model_type"] = family == "qwen2" ? "llava_qwen" : "llava_" + family;
  json.erase("dtype");
  json["torch_dtype"] = config.torch_dtype;

  const auto public_name = public_tower_name(config.vision);
  json["mm_vision_tower"] = !config.vision_tower.empty() ? config.vision_tower : public_name;
  if (public_name.empty()) write_vision(config.vision, json["mm_vision_config"] = Json::object());
  json["mm_hidden_size"] =
      config.vision.hidden_size * static_cast<std::int64_t>(config.feature_layers.size());
  json["use_mm_proj"] = true;
  json["mm_projector_type"] = config.projector_type;
  json["mm_vision_select_layer"] = number_or_list(config.feature_layers);
  json["mm_vision_select_feature"] = config.feature_select;
  json["mm_patch_merge_type"] = config.merge.unpad     ? "spatial_unpad"
                                : config.merge.spatial ? "spatial"
                                                       : "flat";
  json["mm_use_im_start_end"] = config.image_start_end;
  json["mm_use_im_patch_token"] = false;
  json["unfreeze_mm_vision_tower"] = config.tower_in_weights;
  switch (config.tiling.aspect) {
    case media::Aspect::square: json["image_aspect_ratio"] = "square"; break;
    case media::Aspect::pad: json["image_aspect_ratio"] = "pad"; break;
    case media::Aspect::anyres:
      json["image_aspect_ratio"] = config.merge.max_tiles == 0
                                       ? "anyres"
                                       : "anyres_max_" + std::to_string(config.merge.max_tiles);
      json["image_grid_pinpoints"] = grids_for(config, /*height_first=*/false);
      break;
  }
  if (config.is_video) {
    using Newline = media::MergeConfig::Newline;
    if (config.merge.pool_before_projector) json["mm_resampler_type"] = "spatial_pool";
    json["mm_spatial_pool_mode"] = pool_name(config.merge.video_pool);
    json["mm_spatial_pool_stride"] = config.merge.video_stride;
    json["mm_spatial_pool_out_channels"] = config.vision.hidden_size;
    const auto newline = config.merge.video_newline;
    json["mm_newline_position"] = newline == Newline::one     ? "one_token"
                                  : newline == Newline::frame ? "frame"
                                  : newline == Newline::grid  ? "grid"
                                                              : "no_token";
  }
  if (config.max_length > 0) json["tokenizer_model_max_length"] = config.max_length;
  if (!config.conversation.empty()) json["conv_mode"] = config.conversation;
  return json;
}

}  // namespace llava::model
