#include "parts.h"

#include <string_view>

namespace llava::model {
namespace {

/// CLIPVisionConfig's own defaults: those of ViT-B/32. Source: configuration_clip.py.
ClipVisionConfig clip_class_defaults() {
  return {.hidden_size = 768,
          .intermediate_size = 3072,
          .num_hidden_layers = 12,
          .num_attention_heads = 12,
          .image_size = 224,
          .patch_size = 32,
          .projection_dim = 512};
}

struct PublicTower {
  std::string_view name;
  ClipVisionConfig config;
};

/// Source: the config.json files of these repositories.
std::vector<PublicTower> public_towers() {
  auto base_16 = clip_class_defaults();
  base_16.patch_size = 16;
  return {{"openai/clip-vit-large-patch14-336", clip_large(336)},
          {"openai/clip-vit-large-patch14", clip_large(224)},
          {"openai/clip-vit-base-patch32", clip_class_defaults()},
          {"openai/clip-vit-base-patch16", base_16}};
}

}  // namespace

ClipVisionConfig read_vision(const Keys& keys) {
  keys.word("model_type", "clip_vision_model", {"clip_vision_model", "clip"});
  auto config = clip_class_defaults();
  config.hidden_size = keys.size("hidden_size", config.hidden_size);
  config.intermediate_size = keys.size("intermediate_size", config.intermediate_size);
  config.num_hidden_layers = keys.size("num_hidden_layers", config.num_hidden_layers, kMostLayers);
  config.num_attention_heads = keys.size("num_attention_heads", config.num_attention_heads);
  config.num_channels = keys.size("num_channels", config.num_channels, 3);
  config.image_size = keys.size("image_size", config.image_size, 8192);
  config.patch_size = keys.size("patch_size", config.patch_size, 8192);
  config.projection_dim = keys.size("projection_dim", config.projection_dim);
  config.layer_norm_eps = keys.positive("layer_norm_eps", config.layer_norm_eps);
  config.hidden_act = keys.word("hidden_act", config.hidden_act, {"quick_gelu", "gelu"});
  expect(config.num_channels == 3, Fault::data, keys.where("num_channels"), " must be 3");
  expect(config.hidden_size % config.num_attention_heads == 0, Fault::data, keys.where(),
         ": hidden_size ", config.hidden_size, " is no multiple of num_attention_heads ",
         config.num_attention_heads);
  expect(config.patch_size <= config.image_size, Fault::data, keys.where(), ": patch_size ",
         config.patch_size, " exceeds image_size ", config.image_size);
  return config;
}

void write_vision(const ClipVisionConfig& config, Json& json) {
  json["model_type"] = "clip_vision_model";
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_channels"] = config.num_channels;
  json["image_size"] = config.image_size;
  json["patch_size"] = config.patch_size;
  json["projection_dim"] = config.projection_dim;
  json["layer_norm_eps"] = config.layer_norm_eps;
  json["hidden_act"] = config.hidden_act;
}

ClipVisionConfig clip_large(std::int64_t image_size) {
  ClipVisionConfig config;
  config.image_size = image_size;
  return config;
}

std::optional<ClipVisionConfig> public_tower(const std::string& name) {
  for (const auto& tower : public_towers())
    if (tower.name == name) return tower.config;
  return std::nullopt;
}

std::string public_tower_name(const ClipVisionConfig& config) {
  Json wanted, tried;
  write_vision(config, wanted);
  for (const auto& tower : public_towers()) {
    write_vision(tower.config, tried);
    if (tried == wanted) return std::string(tower.name);
  }
  return "";
}

}  // namespace llava::model
