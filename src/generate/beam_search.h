// Beam search as transformers does it with early_stopping=False.
// Source: huggingface/transformers 5.24.0, generation/utils.py, _beam_search.
#pragma once

#include "llava/generate/generator.h"

namespace llava::generate {

/// The ids of the best answer of at most `limit` tokens to a prefilled row, which
/// holds its prompt alone afterwards.
std::vector<std::int64_t> beam_search(Assistant& assistant, Row& row, const GenerateConfig& config,
                                      std::int64_t limit);

}  // namespace llava::generate
