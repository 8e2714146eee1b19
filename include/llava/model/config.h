// Hyperparameters of a LLaVA model from a Hugging Face or an original config.json, strict about
// what is missing; defaults are those of the classes that wrote the files.
#pragma once

#include "llava/base/config.h"
#include "llava/media/tiles.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llava::model {

struct ClipVisionConfig {
  std::int64_t hidden_size = 1024;
  std::int64_t intermediate_size = 4096;
  std::int64_t num_hidden_layers = 24;
  std::int64_t num_attention_heads = 16;
  std::int64_t num_channels = 3;
  std::int64_t image_size = 336;
  std::int64_t patch_size = 14;
  std::int64_t projection_dim = 768;  // not used by LLaVA; kept for the files
  double layer_norm_eps = 1e-5;
  std::string hidden_act = "quick_gelu";  // or "gelu"

  std::int64_t side() const { return image_size / patch_size; }  // patches across a tile
};

/// rope_scaling of a config.
struct RopeScaling {
  std::string type;  // "default", "linear", "dynamic" or "llama3"
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;      // llama3
  std::int64_t original_max_position_embeddings = 8192;  // llama3
};

/// Llama, Vicuna, Mistral and Qwen2 decoders.
struct LlamaConfig {
  std::string model_type = "llama";  // "llama", "mistral" or "qwen2"
  std::int64_t vocab_size = 32000;
  std::int64_t hidden_size = 4096;
  std::int64_t intermediate_size = 11008;
  std::int64_t num_hidden_layers = 32;
  std::int64_t num_attention_heads = 32;
  std::int64_t num_key_value_heads = 32;
  std::int64_t head_dim = 128;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  std::int64_t sliding_window = 0;  // 0: none
  bool attention_bias = false;      // biases on q, k, v (and o for llama)
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  std::optional<std::int64_t> bos_token_id, pad_token_id;
  std::vector<std::int64_t> eos_token_ids;
};

enum class Layout { hugging_face, original };

/// A whole LLaVA model.
struct LlavaConfig {
  Layout layout = Layout::hugging_face;  // of the folder it came from
  ClipVisionConfig vision;
  LlamaConfig text;

  std::string projector_type = "mlp2x_gelu";  // "linear", "mlpNx_gelu" or "identity"
  std::string projector_act = "gelu";  // between the projector's Linears; "gelu" is the erf form
  bool projector_bias = true;
  // Which hidden states (0: the embeddings, -1: the last layer's); several are concatenated.
  std::vector<std::int64_t> feature_layers{-2};
  std::string feature_select = "patch";  // "patch", "cls_patch" or "cls" (class token alone)

  media::TilingConfig tiling;  // preprocessing, from preprocessor_config.json and config.json
  media::MergeConfig merge;    // tiles' features -> one sequence
  bool has_newline = false;    // there is an image_newline vector
  bool is_video = false;       // LLaVA-NeXT-Video

  bool image_start_end = false;  // mm_use_im_start_end
  bool tower_in_weights = true;  // false: vision weights come from `vision_tower`
  std::string vision_tower;      // mm_vision_tower: folder or public name
  std::int64_t image_token_id = -1, video_token_id = -1;  // Hugging Face layout; -1: none
  std::string torch_dtype;                                // as the file says; "" when silent
  std::string conversation;     // template name when the folder names or implies one, else ""
  std::int64_t max_length = 0;  // tokens after splicing; 0: text.max_position_embeddings

  Json source;  // the file as read, so that unknown keys survive saving
};

/// From a folder's config.json (+ preprocessor_config.json and the like). `vision_tower`: folder of
/// the tower, over the one that an original config names.
/// Throws Error(data) naming the file and the key.
LlavaConfig read_llava_config(const std::string& folder, const std::string& vision_tower = "");
/// From a bare CLIP folder; from a bare Llama, Vicuna, Mistral or Qwen2 folder.
ClipVisionConfig read_clip_config(const std::string& folder);
LlamaConfig read_llama_config(const std::string& folder);

/// A config.json of either layout, complete: every size explicit, keys of `config.source` that we
/// do not know kept.  Throws Error(data) where the layout cannot express the model.
Json hugging_face_config(const LlavaConfig& config);
Json original_config(const LlavaConfig& config);

/// The preprocessor_config.json that goes with either layout.
Json preprocessor_config(const LlavaConfig& config);

/// Models by name: tiny, llava-1.5-7b, llava-1.5-13b, llava-1.6-7b, ... in the Hugging Face layout.
/// Change fields of the result for other sizes.  Throws Error(usage) naming the nearest name.
LlavaConfig named_shape(const std::string& name);
std::vector<std::string> shape_names();

}  // namespace llava::model
