// Strings <-> token ids: SentencePiece models (tokenizer.model) and Hugging Face byte-level BPE
// (tokenizer.json), with the added tokens of the folder's JSON files, and a streaming decoder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava::text {

/// A half-open range of bytes of a text.
struct Range {
  std::size_t begin = 0, end = 0;
};

/// One token and the bytes of the text it came from. A token that stands for no byte (a dummy
/// prefix) has an empty range where it was inserted.
struct Token {
  std::int64_t id = 0;
  Range bytes;
};

/// How a Llama tokenizer treats the text after a special token ("legacy" of tokenizer_config.json).
enum class Spacing {
  legacy,            // every segment gets the dummy prefix
  first_segment,     // only the text's beginning does (transformers >= 4.34, legacy: false)
  first_segment_431  // as transformers 4.31 to 4.33 did it: LLaVA-1.5's training data
};

struct TokenizerOptions {
  std::optional<Spacing>
      spacing;  // nothing: as the folder's files say, legacy when they are silent
};

/// Immutable after load; any number of threads may use one.
class Tokenizer {
 public:
  /// Reads a model folder: tokenizer.model if there is one, as the reference does, else
  /// tokenizer.json.  Throws Error(data) naming the file and what is wrong with it.
  static Tokenizer load(const std::string& folder, const TokenizerOptions& options = {});

  /// Token ids of a whole text, without BOS. Added tokens (</s>, <image>, <|im_end|> ...) are
  /// recognised except where they overlap a `literal` range, which holds a person's words.
  /// `literal` is sorted and does not overlap.
  std::vector<Token> encode(std::string_view text, const std::vector<Range>& literal = {}) const;

  /// encode without ranges.
  std::vector<std::int64_t> ids(std::string_view text,
                                const std::vector<Range>& literal = {}) const;

  /// The text of ids: control tokens are left out when `skip_special`; ids out of range always.
  std::string decode(const std::vector<std::int64_t>& ids, bool skip_special = true) const;

  /// The piece as stored, for showing: "▁Hello", "<0x0A>", "</s>"; "<image>" for -200.
  std::string piece(std::int64_t id) const;

  /// Id of an added or control token by its exact text.
  std::optional<std::int64_t> special(std::string_view token) const;
  bool is_special(std::int64_t id) const;

  std::int64_t size() const;  // len(tokenizer): ids are 0 .. size()-1
  bool adds_bos() const;      // whether a whole text begins with BOS
  std::optional<std::int64_t> bos() const, eos() const, unk() const, pad() const;
  Spacing spacing() const;
  std::int64_t max_length() const;  // model_max_length of the folder; 0: none given

 private:
  friend class StreamDecoder;
  struct State;
  struct Loader;
  std::shared_ptr<const State> state_;
};

/// Decodes ids one at a time and never emits half a character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer);

  /// The text that became certain with this id; may be empty.
  std::string push(std::int64_t id);

  /// What is left at the end: U+FFFD for each byte of an unfinished character.
  std::string finish();

 private:
  friend class Tokenizer;
  std::string push(std::int64_t id, bool keep_special);
  std::string take_characters(bool all);

  Tokenizer tokenizer_;
  std::string bytes_;  // of an unfinished character
  bool first_ = true;  // nothing emitted yet: one leading space is dropped
};

}  // namespace llava::text
