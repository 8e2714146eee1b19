// Tokens that stand above the model's own vocabulary (</s>, <image>, <|im_end|> ...): what a
// folder's JSON files say about them, and where they occur in a text.
#pragma once

#include "llava/text/tokenizer.h"

#include <nlohmann/json.hpp>

#include <array>
#include <functional>

namespace llava::text {

inline constexpr std::int64_t kMaxTokenId = 1 << 21;  // the largest vocabulary seen has 262,144
inline constexpr std::size_t kMaxTokenBytes = 4096;

struct AddedToken {
  std::string text;
  std::int64_t id = -1;                 // -1: not said; the next free id
  bool special = true;                  // left out when decoding
  bool lstrip = false, rstrip = false;  // swallows white space at its left, right
  bool single_word = false;             // not inside a word

  /// Whether a person's words must not become it: it is special, or it looks like markup.
  bool is_control() const {
    return special || (text.size() > 2 && text.front() == '<' && text.back() == '>');
  }
};

/// Of tokens with the same text only the first stays.
void keep_first_of_each(std::vector<AddedToken>& tokens);

/// What tokenizer_config.json, special_tokens_map.json, added_tokens.json and the "added_tokens" of
/// tokenizer.json say.
struct TokenizerSettings {
  std::vector<AddedToken> added;  // those that decide an id first
  std::optional<std::string> bos, eos, unk, pad;
  std::optional<bool> add_bos, legacy, add_prefix_space;
  std::int64_t max_length = 0;
};

/// `tokenizer_json` is that file's content, or null. Every file may be missing.
/// Throws Error(data) naming the file and the key at fault.
/// Source of the order of files: huggingface/transformers 4.37.2, tokenization_utils_base.py,
/// _from_pretrained.
TokenizerSettings read_settings(const std::string& folder, const nlohmann::json& tokenizer_json);

/// Where an added token stands in a text.
struct AddedMatch {
  std::size_t begin = 0, end = 0;  // with the white space it swallows
  const AddedToken* token = nullptr;
};

/// Finds added tokens, leftmost first, of several at one place the longest.
class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  /// The next one at or after `from`, none that is_control() touching a `literal` range; token is
  /// nullptr when there is none. `next_literal` is kept between calls on one text, 0 at first.
  AddedMatch find(std::string_view text, std::size_t from, const std::vector<Range>& literal,
                  std::size_t& next_literal) const;

  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;                             // longest first
  std::array<std::vector<std::uint32_t>, 256> by_first_byte_;  // indices into tokens_
};

}  // namespace llava::text
