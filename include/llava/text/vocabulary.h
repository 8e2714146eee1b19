// New SentencePiece vocabularies with Llama's settings, for models that start from nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llava::text {

/// A BPE model of `size` pieces trained on `lines`: byte fallback, digits apart, no normalization.
/// The same lines give the same bytes.  Throws Error(usage) if the text cannot fill or needs more
/// than `size`, saying which size would do.
std::string train_vocabulary(const std::vector<std::string>& lines, std::int64_t size);

/// A model that needs no text: the bytes and every printable ASCII character, one piece each.
std::string character_vocabulary();

/// Writes tokenizer.model, tokenizer_config.json, special_tokens_map.json and, with the ids that
/// follow the model's pieces, added_tokens.json for <image> and <pad>.
void save_tokenizer(const std::string& folder, const std::string& model);

}  // namespace llava::text
