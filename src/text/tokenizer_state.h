// What a Tokenizer holds; private to this folder.
#pragma once

#include "added_tokens.h"
#include "byte_encoder.h"
#include "piece_encoder.h"

#include "llava/text/tokenizer.h"

#include <unordered_map>
#include <variant>

namespace llava::text {

/// How an id becomes text.
enum class Form : std::uint8_t {
  words,      // a space mark is a space
  byte,       // "<0x0A>"
  printable,  // bytes in the printable form of byte-level BPE
  literal,    // an added token that is no control token: as it stands
  special,    // nothing, unless asked for
};

/// Where a dummy space mark is put.
struct Prefixing {
  bool every_segment = false;
  bool whole_text = false;    // before the first segment, even an empty one
  bool unless_space = false;  // not before a segment that begins with a space, nor an empty one
  bool cut_again = false;     // transformers 4.31: taken off the first piece of later segments
};

struct Tokenizer::State {
  std::vector<std::string> pieces;  // by id, as stored
  std::vector<Form> forms;          // by id
  AddedTokens added;
  std::unordered_map<std::string, std::int64_t> specials;
  std::variant<std::monostate, PieceEncoder, ByteEncoder> encoder;
  Prefixing prefixing;                     // of a PieceEncoder
  std::vector<std::int64_t> without_mark;  // by id, for Prefixing::cut_again
  Spacing spacing = Spacing::legacy;
  bool adds_bos = false;
  std::optional<std::int64_t> bos, eos, unk, pad;
  std::int64_t max_length = 0;

  bool is_byte_level() const { return std::holds_alternative<ByteEncoder>(encoder); }
  void encode_segment(std::string_view text, Range segment, bool before_special,
                      std::vector<Token>& out) const;
};

}  // namespace llava::text
