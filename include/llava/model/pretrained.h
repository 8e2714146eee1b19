// Folders <-> models. What a folder is gets decided by its files and keys, never by its name.
#pragma once

#include "llava/model/llava.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::model {

struct LoadOptions {
  torch::Device device = torch::kCPU;
  std::optional<torch::ScalarType> dtype;  // nothing: as the files are
  std::string model_base;                  // for projector-only and LoRA folders
  std::string vision_tower;                // overrides the config's
  // On a CPU, weights of the wanted dtype stay where their files are mapped, for a model that is to
  // be packed: a start then reads each once. Such files must not be written to meanwhile.
  bool leaves_in_files = false;
};

/// A model and the folders its other files (tokenizer) come from.
struct Pretrained {
  Llava model{nullptr};
  std::string tokenizer_folder;
  std::int64_t narrowed = 0;  // tensors that have fewer bits than in their files
  std::string base_folder;    // of the whole model or LLM that an adapter of this model builds on
};

/// Loads any folder of the contract's table. No random initialisation, no second copy: each tensor
/// goes from the file's mapping to its place, or is left there.  Throws Error(data) listing every
/// missing, unexpected and misshapen tensor at once. The model is in evaluation mode and nothing of
/// it learns yet.
Pretrained load_pretrained(const std::string& folder, const LoadOptions& options = {});

/// Writes config, weights, preprocessor and tokenizer files (copied from `tokenizer_folder`) so
/// that the layout's readers load it.  All or nothing per file; weights first, config last.
void save_pretrained(const std::string& folder, Llava& model, Layout layout,
                     const std::string& tokenizer_folder);

/// A new LLaVA from a bare CLIP folder and a bare Llama/Vicuna/Mistral/Qwen2 folder: `wanted` says
/// everything else (projector, features, tiling, layout); its vision and text parts are replaced by
/// the folders'. The projector and newline get initial values from `seed`.
Pretrained assemble(const std::string& vision_folder, const std::string& language_folder,
                    LlavaConfig wanted, std::uint64_t seed, const LoadOptions& options = {});

/// "float32", "bfloat16", "float16": how config.json spells a dtype.
std::string dtype_name(torch::ScalarType type);

/// Only the projector, as the reference's Stage 1 writes it: mm_projector.bin and config.json.
void save_projector(const std::string& folder, Llava& model);

/// Loads mm_projector.bin (or .safetensors) into a model.  Throws Error(data) on any mismatch.
void load_projector(const std::string& path, Llava& model);

}  // namespace llava::model
