#include "llava/model/shapes.h"

#include "parts.h"

#include <algorithm>

namespace llava::model {
namespace {

/// A decoder's sizes. Source: the config.json files of the public models named beside each.
struct TextShape {
  std::int64_t width, layers, heads, kv_heads, inner, rows, positions;
  double theta, eps;
  const char* type;
};
constexpr TextShape kVicuna7b{4096, 32, 32, 32, 11008, 32064, 4096, 1e4, 1e-5, "llama"};
constexpr TextShape kVicuna13b{5120, 40, 40, 40, 13824, 32064, 4096, 1e4, 1e-5, "llama"};
constexpr TextShape kMistral7b{4096, 32, 32, 8, 14336, 32064, 32768, 1e6, 1e-5, "mistral"};
constexpr TextShape kYi34b{7168, 60, 56, 8, 20480, 64064, 4096, 5e6, 1e-5, "llama"};
constexpr TextShape kLlama3_8b{4096, 32, 32, 8, 14336, 128320, 8192, 5e5, 1e-5, "llama"};
// For tests and demonstrations: learns in minutes on two cores.
constexpr TextShape kTiny{128, 4, 4, 4, 352, 512, 2048, 1e4, 1e-5, "llama"};

struct Shape {
  const char* name;
  TextShape text;
  std::int64_t image_size;
  const char* projector;
  media::Aspect aspect;
  bool is_video = false;
  const char* select = "patch";
};

using media::Aspect;
constexpr Shape kShapes[] = {
    {"tiny", kTiny, 84, "mlp2x_gelu", Aspect::pad},
    {"llava-class-token-13b", kVicuna13b, 224, "linear", Aspect::square, false, "cls"},
    {"llava-v1-7b", kVicuna7b, 224, "linear", Aspect::square},
    {"llava-v1-13b", kVicuna13b, 224, "linear", Aspect::square},
    {"llava-1.5-7b", kVicuna7b, 336, "mlp2x_gelu", Aspect::pad},
    {"llava-1.5-13b", kVicuna13b, 336, "mlp2x_gelu", Aspect::pad},
    {"llava-1.6-7b", kVicuna7b, 336, "mlp2x_gelu", Aspect::anyres},
    {"llava-1.6-13b", kVicuna13b, 336, "mlp2x_gelu", Aspect::anyres},
    {"llava-1.6-mistral-7b", kMistral7b, 336, "mlp2x_gelu", Aspect::anyres},
    {"llava-1.6-34b", kYi34b, 336, "mlp2x_gelu", Aspect::anyres},
    {"llava-next-llama3-8b", kLlama3_8b, 336, "mlp2x_gelu", Aspect::anyres},
    {"llava-next-video-7b", kVicuna7b, 336, "mlp2x_gelu", Aspect::anyres, true},
};

LlamaConfig text_config(const TextShape& shape) {
  LlamaConfig config;
  config.model_type = shape.type;
  config.vocab_size = shape.rows;
  config.hidden_size = shape.width;
  config.intermediate_size = shape.inner;
  config.num_hidden_layers = shape.layers;
  config.num_attention_heads = shape.heads;
  config.num_key_value_heads = shape.kv_heads;
  config.head_dim = shape.width / shape.heads;
  config.max_position_embeddings = shape.positions;
  config.rms_norm_eps = shape.eps;
  config.rope_theta = shape.theta;
  config.bos_token_id = 1;
  config.eos_token_ids = {2};
  return config;
}

}  // namespace

Grids default_grids(std::int64_t tile) {
  return {
      {tile, 2 * tile}, {2 * tile, tile}, {2 * tile, 2 * tile}, {3 * tile, tile}, {tile, 3 * tile}};
}

void use_aspect(LlavaConfig& config, Aspect aspect) {
  const bool anyres = aspect == Aspect::anyres;
  config.tiling.aspect = aspect;
  config.tiling.pinpoints = anyres ? default_grids(config.tiling.tile) : Grids();
  config.tiling.height_first = anyres && config.layout == Layout::hugging_face;
  config.merge.spatial = config.merge.unpad = config.has_newline = anyres;
}

LlavaConfig named_shape(const std::string& name) {
  const auto found = std::find_if(std::begin(kShapes), std::end(kShapes),
                                  [&](const Shape& shape) { return shape.name == name; });
  expect(found != std::end(kShapes), Fault::usage, "there is no model shape \"", name, "\"",
         suggestion(name, shape_names()));
  LlavaConfig config;
  config.vision = clip_large(found->image_size);
  if (name == "tiny") {
    config.vision.hidden_size = 64;
    config.vision.intermediate_size = 256;
    config.vision.num_hidden_layers = 3;
    config.vision.num_attention_heads = 4;
    config.vision.projection_dim = 64;
  }
  config.text = text_config(found->text);
  config.projector_type = found->projector;
  config.feature_select = found->select;
  config.tiling.tile = config.tiling.shortest_edge = found->image_size;
  config.merge.side = config.vision.side();
  config.merge.class_only = config.feature_select == "cls";
  config.is_video = found->is_video;
  // The Hugging Face classes know neither a linear projector nor the class token alone.
  const bool is_original = config.projector_type == "linear" || config.merge.class_only;
  config.layout = is_original ? Layout::original : Layout::hugging_face;
  config.merge.hugging_face = !is_original;
  use_aspect(config, found->aspect);
  const auto base_rows = found->text.rows - 64;  // without <image>, <pad> and spare rows
  if (is_original) {
    config.text.vocab_size = base_rows;
    config.vision_tower = public_tower_name(config.vision);
  } else if (name != "tiny") {
    config.image_token_id = base_rows + (config.is_video ? 1 : 0);
    config.video_token_id = config.is_video ? base_rows : -1;
  }
  return config;
}

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const auto& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

}  // namespace llava::model
