// Encodes text whose vocabulary writes a space as U+2581: SentencePiece's BPE models, and the
// tokenizer.json form of the same.
#pragma once

#include "bpe.h"
#include "sentencepiece_model.h"

#include "llava/text/tokenizer.h"

#include <array>
#include <unordered_map>

namespace llava::text {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, a space in a piece

/// What the encoder needs to know of a vocabulary. Ids of `merges` are places in `pieces`, or, past
/// its end, characters that are no pieces.
struct PieceVocabulary {
  std::vector<Piece> pieces;  // an empty text: no piece has this id
  std::vector<Bpe::Merge> merges;
  std::vector<std::string> characters;  // ids from pieces.size() on
  std::optional<std::uint32_t> unk;
  bool byte_fallback = false;
  bool fuse_unk = true;              // a run of unknown characters is one token
  bool split_at_every_mark = false;  // Metaspace with "split": true
};

/// The merges of a SentencePiece model: of every piece that is two others joined, the pair, ranked
/// by the score of the whole.
PieceVocabulary sentencepiece_vocabulary(SentencePieceModel model);

class PieceEncoder {
 public:
  explicit PieceEncoder(const PieceVocabulary& vocabulary);

  /// Appends the tokens of text[segment]; `prefix` puts a space mark before it.
  void encode(std::string_view text, Range segment, bool prefix, std::vector<Token>& out) const;

 private:
  struct UserDefined {
    std::u32string text;
    std::uint32_t id;
  };

  std::uint32_t symbol_of(char32_t code) const;
  const UserDefined* user_defined_at(std::string_view text, std::size_t at, bool dummy,
                                     std::size_t& length) const;
  void emit(std::string_view text, const std::vector<Symbol>& word, std::size_t first,
            std::vector<Token>& out) const;
  void emit_bytes(std::string_view text, const Symbol& symbol, std::vector<Token>& out) const;

  Bpe bpe_;
  std::uint32_t num_pieces_ = 0;
  std::array<std::uint32_t, 128> ascii_{};
  std::unordered_map<char32_t, std::uint32_t> characters_;
  std::unordered_map<char32_t, std::vector<UserDefined>> user_defined_;  // by first; longest first
  std::array<std::int32_t, 256> bytes_{};  // ids of byte pieces, -1 where there is none
  std::optional<std::uint32_t> unk_;
  bool byte_fallback_ = false, fuse_unk_ = true, split_at_every_mark_ = false;
  bool words_are_apart_ = true;  // no merge crosses from a word to the space after it
};

}  // namespace llava::text
