#include "sentencepiece_model.h"

#include "unicode.h"

#include "llava/base/check.h"

#include <array>
#include <bit>
#include <cmath>
#include <unordered_set>

namespace llava::text {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{64} << 20;  // Gemma's, the largest seen, is 4 MB
constexpr std::size_t kMaxPieceBytes = 512;               // keeps the table of merges small

/// Reads one protocol-buffer message field by field.
class Message {
 public:
  Message(std::string_view bytes, std::size_t offset, const std::string& where)
      : bytes_(bytes), offset_(offset), where_(where) {}

  /// Moves to the next field; false at the end.
  bool next() {
    if (at_ == bytes_.size()) return false;
    start_ = at_;
    const std::uint64_t key = varint();
    field = key >> 3;
    wire_ = static_cast<int>(key & 7);
    if (field == 0 || field > 0x1FFFFFFF) broken("has field number ", field);
    switch (wire_) {
      case 0: number_ = varint(); break;
      case 1: value_ = take(8); break;
      case 2: value_ = take(varint()); break;
      case 5: value_ = take(4); break;
      default: broken("has wire type ", wire_);
    }
    return true;
  }

  std::uint64_t number() const {
    need(0);
    return number_;
  }
  bool flag() const { return number() != 0; }
  std::string_view text() const {
    need(2);
    return value_;
  }
  float real() const {
    need(5);
    std::uint32_t bits = 0;
    for (int i = 3; i >= 0; --i) bits = bits << 8 | static_cast<unsigned char>(value_[i]);
    return std::bit_cast<float>(bits);
  }
  Message message() const {
    need(2);
    return {value_, offset_ + static_cast<std::size_t>(value_.data() - bytes_.data()), where_};
  }

  template <class... Parts>
  [[noreturn]] void broken(const Parts&... parts) const {
    fail(Fault::data, where_, ": byte ", offset_ + start_, " ", parts...,
         ": not a SentencePiece model, or a damaged one; copy it again");
  }

  std::uint64_t field = 0;

 private:
  void need(int wire) const {
    if (wire_ != wire) broken("has field ", field, " with wire type ", wire_);
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= shift < 64 ? std::uint64_t{byte & 0x7Fu} << shift : 0;
      if (byte < 0x80) return value;
    }
    broken("has a number longer than 10 bytes");
  }
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size() - at_) broken("has a field that runs past the end");
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }

  std::string_view bytes_;
  std::size_t offset_;  // of bytes_ in the file
  const std::string& where_;
  std::size_t at_ = 0, start_ = 0;
  int wire_ = 0;
  std::uint64_t number_ = 0;
  std::string_view value_;
};

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto here = character_at(text, at);
    if (!here.valid) return false;
    at += here.length;
  }
  return true;
}

Piece read_piece(Message message) {
  Piece piece;
  while (message.next()) {
    if (message.field == 1) piece.text = message.text();
    if (message.field == 2) piece.score = message.real();
    if (message.field == 3) {
      const auto kind = message.number();
      if (kind < 1 || kind > 6) message.broken("has a piece of kind ", kind);
      piece.kind = static_cast<PieceKind>(kind);
    }
  }
  if (piece.text.empty()) message.broken("has a piece without text");
  if (piece.text.size() > kMaxPieceBytes) {
    message.broken("has a piece of ", piece.text.size(), " bytes");
  }
  if (!is_utf8(piece.text)) message.broken("has a piece that is not UTF-8");
  if (!std::isfinite(piece.score)) message.broken("has a score that is not a number");
  return piece;
}

void read_trainer(Message message, SentencePieceModel& model, const std::string& where) {
  std::uint64_t type = 1;
  while (message.next()) {
    switch (message.field) {
      case 3: type = message.number(); break;
      case 24:
        expect(!message.flag(), Fault::data, where,
               ": treat_whitespace_as_suffix is not supported; Llama's tokenizers do not use it");
        break;
      case 35: model.byte_fallback = message.flag(); break;
      case 44: model.unk_surface = message.text(); break;
      case 45: model.unk = message.text(); break;
      case 46: model.bos = message.text(); break;
      case 47: model.eos = message.text(); break;
      case 48: model.pad = message.text(); break;
    }
  }
  constexpr std::array<const char*, 5> kTypes = {"?", "unigram", "bpe", "word", "char"};
  expect(type == 2, Fault::data, where, ": the model type is ", type < 5 ? kTypes[type] : "unknown",
         ", only bpe is supported; give the folder a tokenizer.json instead");
}

void read_normalizer(Message message, SentencePieceModel& model, const std::string& where) {
  bool remove_extra = true, escape = true;
  std::string_view map;
  while (message.next()) {
    switch (message.field) {
      case 2: map = message.text(); break;
      case 3: model.add_dummy_prefix = message.flag(); break;
      case 4: remove_extra = message.flag(); break;
      case 5: escape = message.flag(); break;
    }
  }
  expect(map.empty() && !remove_extra && escape, Fault::data, where,
         ": its normalizer changes the text (a character map, remove_extra_whitespaces or no "
         "escape_whitespaces), which is not supported; Llama's tokenizers use identity");
}

void check_pieces(const SentencePieceModel& model, const std::string& where) {
  std::unordered_set<std::string_view> texts;
  int unknown = 0;
  std::array<bool, 256> bytes{};
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    expect(texts.insert(piece.text).second, Fault::data, where, ": piece ", id, " (\"", piece.text,
           "\") appears twice; the file is damaged, copy it again");
    unknown += piece.kind == PieceKind::unknown;
    if (piece.kind != PieceKind::byte) continue;
    const int byte = byte_of_piece(piece.text);
    expect(byte >= 0, Fault::data, where, ": piece ", id, " (\"", piece.text,
           "\") is of kind byte but not written as <0x00>; the file is damaged, copy it again");
    bytes[static_cast<std::size_t>(byte)] = true;
  }
  expect(unknown == 1, Fault::data, where, ": has ", unknown,
         " pieces of kind unknown, expected one; the file is damaged, copy it again");
  for (std::size_t byte = 0; byte < 256 && model.byte_fallback; ++byte) {
    expect(bytes[byte], Fault::data, where, ": byte fallback is on, but byte ", byte,
           " has no piece; the file is damaged, copy it again");
  }
}

}  // namespace

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  const auto high = kDigits.find(piece[3]), low = kDigits.find(piece[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(high * 16 + low);
}

SentencePieceModel parse_sentencepiece(std::string_view bytes, const std::string& where) {
  expect(bytes.size() <= kMaxBytes, Fault::data, where, ": has ", bytes.size(),
         " bytes, more than any SentencePiece model; is it another file?");
  SentencePieceModel model;
  Message message(bytes, 0, where);
  bool trainer = false, normalizer = false;
  while (message.next()) {
    if (message.field == 1) model.pieces.push_back(read_piece(message.message()));
    if (message.field == 2) {
      read_trainer(message.message(), model, where);
      trainer = true;
    }
    if (message.field == 3) {
      read_normalizer(message.message(), model, where);
      normalizer = true;
    }
  }
  expect(trainer && normalizer && !model.pieces.empty(), Fault::data, where,
         ": lacks its pieces, trainer or normalizer: not a SentencePiece model, or cut short; copy "
         "it again");
  check_pieces(model, where);
  return model;
}

}  // namespace llava::text
