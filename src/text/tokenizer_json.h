// tokenizer.json of Hugging Face's tokenizers: byte-level BPE (Llama-3, Qwen2, GPT-2) and BPE with
// byte fallback (Llama-2 and Mistral converted from SentencePiece). Kinds that are neither are
// errors: a tokenizer that is nearly right would be worse than none.
// Source: huggingface/tokenizers 0.23, the JSON of its models, normalizers and pre-tokenizers.
#pragma once

#include "byte_encoder.h"
#include "piece_encoder.h"

#include <nlohmann/json.hpp>

#include <variant>

namespace llava::text {

/// Where a space mark is put before text.
struct JsonSpacing {
  bool every_segment = false;  // else only before the whole text
  bool prefix = true;
  bool unless_space = false;  // not before a space
  bool split_at_every_mark = false;
};

struct JsonTokenizer {
  std::variant<PieceVocabulary, ByteVocabulary> vocabulary;
  JsonSpacing spacing;             // of a PieceVocabulary
  std::optional<std::string> bos;  // put first by the post-processor
};

/// The file's text as JSON.  Throws Error(data).
/// (Not base's Json: that keeps the order of keys and pays for it in a vocabulary of 128,000.)
nlohmann::json tokenizer_json(const std::string& text, const std::string& path);

/// The same of a file; null when there is none.
nlohmann::json read_tokenizer_json(const std::string& path);

/// How the file treats spaces; nothing when it is not a kind known here.
std::optional<JsonSpacing> json_spacing(const nlohmann::json& json);

/// Throws Error(data) naming the key at fault, also for what this program does not implement.
JsonTokenizer parse_tokenizer_json(const nlohmann::json& json, const std::string& path);

}  // namespace llava::text
