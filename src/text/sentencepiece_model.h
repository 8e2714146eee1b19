// tokenizer.model: SentencePiece's ModelProto, read from its wire format and checked in full, so
// that no other parser needs to trust it.
//   message: field 1 piece*, 2 trainer, 3 normalizer         (protocol buffers, proto2)
//   piece: 1 string text, 2 float score, 3 enum kind
//   trainer: 3 model type (2 = BPE), 24 whitespace as suffix, 35 byte fallback, 44 unknown's
//   surface,
//     45 to 48 the texts of unk, bos, eos and pad
//   normalizer: 2 character map, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
//     5 escape_whitespaces; all three default to true
// Source: google/sentencepiece 0.2.0, src/sentencepiece_model.proto.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llava::text {

enum class PieceKind : std::uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

struct Piece {
  std::string text;
  float score = 0;
  PieceKind kind = PieceKind::normal;
};

struct SentencePieceModel {
  std::vector<Piece> pieces;  // by id; each text once
  bool add_dummy_prefix = true;
  bool byte_fallback = false;
  std::string unk_surface = " \xE2\x81\x87 ";  // what an unknown piece decodes to
  std::string unk = "<unk>", bos = "<s>", eos = "</s>", pad = "<pad>";
};

/// Throws Error(data) naming `where`, the byte or piece at fault and what is wrong, also for models
/// that are sound but of a kind this program does not implement (not BPE; with a character map).
SentencePieceModel parse_sentencepiece(std::string_view bytes, const std::string& where);

/// The byte that a piece like "<0x0A>" stands for, or -1.
int byte_of_piece(std::string_view piece);

}  // namespace llava::text
