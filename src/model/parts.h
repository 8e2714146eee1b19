// The parts of a model's config files, each read and written in one place. The files' own defaults
// apply where a key is absent.
#pragma once

#include "keys.h"

#include "llava/model/config.h"

namespace llava::model {

/// A decoder's config. `outer`: the object around a text_config; the same where there is none.
LlamaConfig read_text(const Keys& keys, const Keys& outer, const std::string& model_type);

/// Throws unless every end token is one of the vocabulary.
void check_ends(const LlamaConfig& config, const std::string& where);

/// Every key of a decoder's config, over those of `json`.
void write_text(const LlamaConfig& config, Json& json);

ClipVisionConfig read_vision(const Keys& keys);
void write_vision(const ClipVisionConfig& config, Json& json);

/// CLIP-L/14, which a LLaVA config without vision_config means.
ClipVisionConfig clip_large(std::int64_t image_size);

/// Towers that original configs name without saying their sizes; nothing for another name.
std::optional<ClipVisionConfig> public_tower(const std::string& name);

/// The public name of a tower of these sizes, or "".
std::string public_tower_name(const ClipVisionConfig& config);

/// Everything of a folder's preprocessor_config.json but the aspect and the grids. Returns whether
/// the processor pads to a square. A folder without one means CLIP's own processor.
bool read_preprocessor(const std::string& folder, const ClipVisionConfig& vision,
                       media::TilingConfig& tiling);

/// image_grid_pinpoints: a list of pairs, the same as text, or a range; empty when absent.
std::vector<std::pair<std::int64_t, std::int64_t>> read_grids(const Keys& keys, std::int64_t tile);

/// The grids as a layout lists them: transformers takes (height, width), LLaVA (width, height).
Json grids_for(const LlavaConfig& config, bool height_first);

/// The folder that a projector-only or LoRA folder's config.json names as its base, or "".
std::string base_named_by(const std::string& folder);

/// Folder inside a PEFT folder for transformers that keeps the model's own settings: beside
/// adapter_config.json a config.json would make transformers look for a whole model there.
inline constexpr const char* kAdapterSettings = "llava";

/// Where a model folder's config.json is: in it, or in its kAdapterSettings.
std::string settings_folder(const std::string& folder);

/// Whether a folder's config.json is a LLaVA's, whatever weights are beside it.
bool has_llava_config(const std::string& folder);

/// A folder's path that holds wherever the program is started from; what is no folder stays.
std::string lasting_path(const std::string& folder);

bool is_file(const std::string& path);
bool is_folder(const std::string& path);

}  // namespace llava::model
