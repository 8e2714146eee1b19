// Byte-level BPE (GPT-2's, and Llama-3's and Qwen's after it): the text is cut into words by a
// fixed pattern, and the bytes of each word are merged. No text is unknown to it.
#pragma once

#include "bpe.h"
#include "unicode.h"

#include "llava/text/tokenizer.h"

#include <array>
#include <unordered_map>

namespace llava::text {

/// The patterns in use, from "pre_tokenizer" of tokenizer.json.
struct WordPattern {
  bool gpt_2 = false;  // ByteLevel's own; else the one of cl100k, Llama-3 and Qwen2
  int digits = 3;      // of \p{N}{1,3}: the longest number word
};

/// The pattern of a regular expression.  Throws Error(data) with `where` for one not known.
WordPattern word_pattern(const std::string& regex, const std::string& where);

/// What the encoder needs to know of a vocabulary.
struct ByteVocabulary {
  std::vector<std::string> pieces;  // in the printable form: byte 0x20 is U+0120 ...
  std::vector<Bpe::Merge> merges;
  WordPattern pattern;
  bool nfc = false;            // the text is normalized first
  bool ignore_merges = false;  // a word that is a piece is that piece, whatever the merges say
};

/// The bytes that a piece's printable form stands for; characters that stand for none as they are.
/// Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
std::string bytes_of_printable(std::string_view piece);

/// The printable form of one byte.
std::string printable_of_byte(unsigned char byte);

class ByteEncoder {
 public:
  explicit ByteEncoder(const ByteVocabulary& vocabulary);

  /// Appends the tokens of text[segment].
  void encode(std::string_view text, Range segment, std::vector<Token>& out) const;

 private:
  void emit_word(const std::vector<SourceCharacter>& word_text, std::size_t begin, std::size_t end,
                 std::vector<Symbol>& word, Bpe::Scratch& scratch, std::vector<Token>& out) const;

  Bpe bpe_;
  WordPattern pattern_;
  bool nfc_ = false;
  std::array<std::uint32_t, 256> bytes_{};                // id of each byte's piece
  std::unordered_map<std::string, std::uint32_t> words_;  // for ignore_merges
};

}  // namespace llava::text
