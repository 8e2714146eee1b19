// The chat template that goes with a model folder: one choice for training, checks and talk.
#pragma once

#include "llava/model/config.h"

#include <string>

namespace llava::model {

/// Its name. `asked` (--conv_mode, --version) wins; then config.json's conv_mode; then the marks
/// that the chat template beside the tokenizer holds, which is searched and never executed; then
/// what suits the decoder: mistral_instruct, qwen_1_5, llava_llama_3 or vicuna_v1.
std::string choose_template(const LlavaConfig& config, const std::string& tokenizer_folder,
                            const std::string& asked = "");

}  // namespace llava::model
