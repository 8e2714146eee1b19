// What a training run leaves beside a base model: the projector alone (Stage 1), or a LoRA in
// PEFT's files with the other trained tensors. Source of the formats: haotian-liu/LLaVA 1.2.2,
// train.py and builder.py; huggingface/peft, utils/save_and_load.py.
#pragma once

#include "llava/model/llava.h"
#include "llava/nn/lora.h"
#include "llava/weights/state_dict.h"

#include <string>
#include <vector>

namespace llava::model {

/// What a PEFT folder says of itself.
struct AdapterConfig {
  nn::LoraConfig lora;
  std::string base_model;                   // base_model_name_or_path
  std::vector<std::string> target_modules;  // last parts of the names, "q_proj" ...
};

/// Whether a folder is a PEFT adapter.
bool is_adapter(const std::string& folder);

/// Throws Error(data) naming the file and key.
AdapterConfig read_adapter_config(const std::string& folder);

/// Loads non-LoRA tensors, then attaches the folder's pairs to the model's Linears (unmerged).
/// Reads original LLaVA's and Hugging Face's names.  Throws Error(data) on any mismatch.
void load_adapter(const std::string& folder, Llava& model);

/// The layout of an adapter over this base: a whole LLaVA's own; over a bare LLM the original one,
/// whose config.json tells where the tower is.
Layout adapter_layout(const std::string& base_folder);

/// All tensors of an adapter's folder under the files' names, LoRA's pairs first.
weights::StateDict adapter_tensors(const std::string& folder);

/// Our names of the tensors that an adapter's folder holds beside the pairs.
std::vector<std::string> extra_tensors(const std::string& folder);

/// Writes adapter_config.json, adapter_model.safetensors, non_lora_trainables.bin (trainable
/// tensors that are not LoRA's) and config.json in the layout's names. In Hugging Face's layout
/// adapter_model holds the trainable modules as well, as PEFT's modules_to_save: PEFT knows nothing
/// of non_lora_trainables.bin. It has no place for image_newline. config.json is in the folder
/// llava/ then, so that transformers goes to the base for its own.
void save_adapter(const std::string& folder, Llava& model, Layout layout,
                  const std::string& base_model);

/// Whether the reference puts LoRA on this Linear: those of the decoder's layers.
bool is_lora_target(const std::string& name);

}  // namespace llava::model
