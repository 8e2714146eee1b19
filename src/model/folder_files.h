// What a model folder holds beside its weights and config.json: the tokenizer's files, and the JSON
// files that transformers wants.
#pragma once

#include "llava/model/config.h"

#include <string>
#include <utility>
#include <vector>

namespace llava::model {

/// A token added to a tokenizer, and its id.
using AddedToken = std::pair<std::string, std::int64_t>;

/// Copies the tokenizer's files (those there are) and sees to it that they hold `added`.
void copy_tokenizer(const std::string& from, const std::string& to,
                    const std::vector<AddedToken>& added);

/// The same, dropping added tokens whose ids are `rows` or more.
void copy_tokenizer_cut(const std::string& from, const std::string& to, std::int64_t rows);

Json generation_config(const LlavaConfig& config);

/// processor_config.json of a Hugging Face folder.
Json processor_config(const LlavaConfig& config);

}  // namespace llava::model
