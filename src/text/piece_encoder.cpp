#include "piece_encoder.h"

#include "unicode.h"

#include <algorithm>

namespace llava::text {
namespace {

constexpr char32_t kMark = 0x2581;
constexpr std::uint32_t kFrozen = 0x80000000;  // this symbol is a whole token and never merges

/// Whether a space mark follows something else inside the piece.
bool crosses_words(std::string_view piece) {
  while (piece.starts_with(kSpaceMark)) piece.remove_prefix(kSpaceMark.size());
  return piece.find(kSpaceMark) != std::string_view::npos;
}

std::u32string characters_of(std::string_view text) {
  std::u32string out;
  for (std::size_t at = 0; at < text.size();) {
    const auto here = character_at(text, at);
    out += here.code;
    at += here.length;
  }
  return out;
}

}  // namespace

PieceVocabulary sentencepiece_vocabulary(SentencePieceModel model) {
  PieceVocabulary vocabulary;
  vocabulary.byte_fallback = model.byte_fallback;
  vocabulary.pieces = std::move(model.pieces);
  const auto& pieces = vocabulary.pieces;
  std::unordered_map<std::string_view, std::uint32_t> ids;
  std::vector<std::uint32_t> by_score;  // the pieces that text can become
  for (std::uint32_t id = 0; id < pieces.size(); ++id) {
    const auto kind = pieces[id].kind;
    if (kind == PieceKind::unknown) vocabulary.unk = id;
    // SentencePiece also merges through unused pieces and takes them apart again; here none arises.
    if (kind != PieceKind::normal && kind != PieceKind::user_defined) continue;
    ids.emplace(pieces[id].text, id);
    by_score.push_back(id);
  }
  std::stable_sort(by_score.begin(), by_score.end(), [&](std::uint32_t a, std::uint32_t b) {
    return pieces[a].score > pieces[b].score;
  });

  // Characters that occur in pieces only: their pairs merge though they are no pieces themselves.
  for (const auto id : by_score) {
    const std::string_view text = pieces[id].text;
    for (std::size_t at = 0; at < text.size();) {
      const auto character = text.substr(at, character_at(text, at).length);
      const auto next = static_cast<std::uint32_t>(pieces.size() + vocabulary.characters.size());
      if (ids.emplace(character, next).second) vocabulary.characters.emplace_back(character);
      at += character.size();
    }
  }

  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < by_score.size(); ++i) {
    const auto id = by_score[i];
    const std::string_view text = pieces[id].text;
    if (i > 0 && pieces[id].score < pieces[by_score[i - 1]].score) ++rank;
    for (std::size_t at = character_at(text, 0).length; at < text.size();) {
      const auto left = ids.find(text.substr(0, at)), right = ids.find(text.substr(at));
      if (left != ids.end() && right != ids.end()) {
        vocabulary.merges.push_back({left->second, right->second, rank, id});
      }
      at += character_at(text, at).length;
    }
  }
  return vocabulary;
}

PieceEncoder::PieceEncoder(const PieceVocabulary& vocabulary)
    : bpe_(vocabulary.merges),
      num_pieces_(static_cast<std::uint32_t>(vocabulary.pieces.size())),
      unk_(vocabulary.unk),
      byte_fallback_(vocabulary.byte_fallback),
      fuse_unk_(vocabulary.fuse_unk),
      split_at_every_mark_(vocabulary.split_at_every_mark) {
  ascii_.fill(Bpe::kNone);
  bytes_.fill(-1);
  const auto remember = [&](std::string_view text, std::uint32_t id) {
    const auto first = character_at(text, 0);
    if (first.length != text.size()) return;
    if (first.code < 128) {
      ascii_[first.code] = id;
    } else {
      characters_.emplace(first.code, id);
    }
  };
  for (std::uint32_t id = 0; id < num_pieces_; ++id) {
    const auto& [text, score, kind] = vocabulary.pieces[id];
    if (text.empty()) continue;
    if (kind == PieceKind::byte) {
      bytes_[static_cast<std::size_t>(byte_of_piece(text))] = static_cast<std::int32_t>(id);
    }
    if (kind == PieceKind::normal || kind == PieceKind::user_defined) remember(text, id);
    if (kind == PieceKind::user_defined) {
      const auto characters = characters_of(text);
      user_defined_[characters[0]].push_back({characters, id});
    }
  }
  for (std::size_t i = 0; i < vocabulary.characters.size(); ++i) {
    remember(vocabulary.characters[i], num_pieces_ + static_cast<std::uint32_t>(i));
  }
  ascii_[' '] = symbol_of(kMark);
  for (const auto& merge : vocabulary.merges) {
    words_are_apart_ &= !crosses_words(vocabulary.pieces[merge.result].text);
  }
  for (auto& [first, group] : user_defined_) {
    std::stable_sort(group.begin(), group.end(),
                     [](const auto& a, const auto& b) { return a.text.size() > b.text.size(); });
  }
}

std::uint32_t PieceEncoder::symbol_of(char32_t code) const {
  if (code < 128) return ascii_[code];
  const auto found = characters_.find(code);
  return found == characters_.end() ? Bpe::kNone : found->second;
}

/// The longest user-defined piece at byte `at`, whose bytes are then `length`; with `dummy`, at the
/// mark before it.
const PieceEncoder::UserDefined* PieceEncoder::user_defined_at(std::string_view text,
                                                               std::size_t at, bool dummy,
                                                               std::size_t& length) const {
  if (user_defined_.empty()) return nullptr;
  const auto as_piece = [](char32_t code) { return code == ' ' ? kMark : code; };
  const auto group = user_defined_.find(dummy ? kMark : as_piece(character_at(text, at).code));
  if (group == user_defined_.end()) return nullptr;
  for (const auto& candidate : group->second) {
    std::size_t here = at;
    std::size_t matched = dummy;
    while (matched < candidate.text.size() && here < text.size()) {
      const auto next = character_at(text, here);
      if (as_piece(next.code) != candidate.text[matched]) break;
      here += next.length;
      ++matched;
    }
    length = here - at;
    if (matched == candidate.text.size()) return &candidate;
  }
  return nullptr;
}

void PieceEncoder::encode(std::string_view text, Range segment, bool prefix,
                          std::vector<Token>& out) const {
  const auto whole = text.substr(0, segment.end);
  const std::size_t first = out.size();
  std::vector<Symbol> word;
  Bpe::Scratch scratch;
  bool after_mark = true;  // no word has begun yet
  const auto put = [&](std::uint32_t id, std::size_t begin, std::size_t end, bool is_mark) {
    const bool begins_word = is_mark && (!after_mark || split_at_every_mark_);
    if (begins_word && words_are_apart_ && !word.empty()) {
      bpe_.merge(word, 0, scratch);
      emit(text, word, first, out);
      word.clear();
    }
    after_mark = is_mark;
    word.push_back({id, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)});
  };

  bool dummy = prefix;  // a mark that stands for no byte comes next
  for (std::size_t at = segment.begin; at < segment.end || dummy;) {
    std::size_t length = 0;
    if (const auto* match = user_defined_at(whole, at, dummy, length)) {
      put(match->id | kFrozen, at, at + length, match->text[0] == kMark);
      at += length;
      dummy = false;
      continue;
    }
    if (dummy) {
      put(symbol_of(kMark), at, at, true);
      dummy = false;
      continue;
    }
    const auto here = character_at(whole, at);
    put(symbol_of(here.code), at, at + here.length, here.code == ' ' || here.code == kMark);
    at += here.length;
  }
  bpe_.merge(word, 0, scratch);
  emit(text, word, first, out);
}

void PieceEncoder::emit(std::string_view text, const std::vector<Symbol>& word, std::size_t first,
                        std::vector<Token>& out) const {
  for (const auto& symbol : word) {
    const std::uint32_t id = symbol.id == Bpe::kNone ? Bpe::kNone : symbol.id & ~kFrozen;
    if (id < num_pieces_) {
      out.push_back({id, {symbol.begin, symbol.end}});
    } else if (byte_fallback_) {
      emit_bytes(text, symbol, out);
    } else if (unk_) {
      const bool goes_on = fuse_unk_ && out.size() > first && out.back().id == *unk_;
      if (goes_on) {
        out.back().bytes.end = symbol.end;
      } else {
        out.push_back({*unk_, {symbol.begin, symbol.end}});
      }
    }
  }
}

/// A character that is no piece, as the bytes of its UTF-8 form.
void PieceEncoder::emit_bytes(std::string_view text, const Symbol& symbol,
                              std::vector<Token>& out) const {
  std::string_view bytes = text.substr(symbol.begin, symbol.end - symbol.begin);
  const bool as_written = !bytes.empty() && bytes != " " && character_at(bytes, 0).valid;
  if (bytes.empty() || bytes == " ") {
    bytes = kSpaceMark;
  } else if (!as_written) {
    bytes = kReplacementUtf8;
  }
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto id = bytes_[static_cast<unsigned char>(bytes[i])];
    const Range range = as_written ? Range{symbol.begin + i, symbol.begin + i + 1}
                                   : Range{symbol.begin, symbol.end};
    if (id >= 0) out.push_back({id, range});
  }
}

}  // namespace llava::text
