#include "llava/text/tokenizer.h"

#include "tokenizer_state.h"

#include "llava/base/check.h"

#include <algorithm>

namespace llava::text {
namespace {

constexpr std::int64_t kImageToken = -200;              // input's placeholder, for piece()
constexpr std::size_t kMaxText = std::size_t{1} << 30;  // offsets inside are 32 bits wide

}  // namespace

void Tokenizer::State::encode_segment(std::string_view text, Range segment, bool before_special,
                                      std::vector<Token>& out) const {
  if (const auto* bytes = std::get_if<ByteEncoder>(&encoder)) {
    bytes->encode(text, segment, out);
    return;
  }
  const auto words = text.substr(segment.begin, segment.end - segment.begin);
  const bool begins_with_space = words.starts_with(' ') || words.starts_with(kSpaceMark);
  const bool is_first = segment.begin == 0;
  const bool alone = is_first && prefixing.whole_text && !prefixing.every_segment;
  // The mark before the whole text stands alone when an added token comes first; a special one
  // drops it.  Source: transformers 4.37.2, tokenization_llama.py, tokenize.
  if (words.empty() && (!alone || before_special || prefixing.unless_space)) return;
  const bool prefix =
      (prefixing.every_segment || alone) && !(prefixing.unless_space && begins_with_space);
  const std::size_t start = out.size();
  std::get<PieceEncoder>(encoder).encode(text, segment, prefix, out);
  if (!prefixing.cut_again || is_first || begins_with_space || start == out.size()) return;
  auto& token = out[start];
  if (pieces[static_cast<std::size_t>(token.id)] == kSpaceMark) {
    out.erase(out.begin() + static_cast<std::ptrdiff_t>(start));
  } else {
    token.id = without_mark[static_cast<std::size_t>(token.id)];
  }
}

std::vector<Token> Tokenizer::encode(std::string_view text,
                                     const std::vector<Range>& literal) const {
  expect(text.size() < kMaxText, Fault::data, "a text of ", text.size(),
         " bytes is too long to encode; split it");
  std::vector<Token> out;
  if (text.empty()) return out;
  out.reserve(text.size() / 3);
  std::size_t next_literal = 0;
  for (std::size_t at = 0; at < text.size() || at == 0;) {
    const auto match = state_->added.find(text, at, literal, next_literal);
    state_->encode_segment(text, {at, match.begin}, match.token && match.token->special, out);
    if (!match.token) break;
    out.push_back({match.token->id, {match.begin, match.end}});
    at = match.end;
  }
  return out;
}

std::vector<std::int64_t> Tokenizer::ids(std::string_view text,
                                         const std::vector<Range>& literal) const {
  const auto tokens = encode(text, literal);
  std::vector<std::int64_t> out(tokens.size());
  std::transform(tokens.begin(), tokens.end(), out.begin(), [](const Token& t) { return t.id; });
  return out;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (const auto id : ids) text += decoder.push(id, !skip_special);
  return text + decoder.finish();
}

std::string Tokenizer::piece(std::int64_t id) const {
  if (id == kImageToken) return "<image>";
  if (id < 0 || id >= size()) return "<id " + std::to_string(id) + ">";
  return state_->pieces[static_cast<std::size_t>(id)];
}

std::optional<std::int64_t> Tokenizer::special(std::string_view token) const {
  const auto found = state_->specials.find(std::string(token));
  return found == state_->specials.end() ? std::nullopt : std::optional(found->second);
}

bool Tokenizer::is_special(std::int64_t id) const {
  return id >= 0 && id < size() && state_->forms[static_cast<std::size_t>(id)] == Form::special;
}

std::int64_t Tokenizer::size() const { return static_cast<std::int64_t>(state_->pieces.size()); }
bool Tokenizer::adds_bos() const { return state_->adds_bos; }
std::optional<std::int64_t> Tokenizer::bos() const { return state_->bos; }
std::optional<std::int64_t> Tokenizer::eos() const { return state_->eos; }
std::optional<std::int64_t> Tokenizer::unk() const { return state_->unk; }
std::optional<std::int64_t> Tokenizer::pad() const { return state_->pad; }
Spacing Tokenizer::spacing() const { return state_->spacing; }
std::int64_t Tokenizer::max_length() const { return state_->max_length; }

// ── Streaming ────────────────────────────────────────────────────────────────────────────────────

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

std::string StreamDecoder::push(std::int64_t id) { return push(id, /*keep_special=*/false); }

std::string StreamDecoder::push(std::int64_t id, bool keep_special) {
  const auto& state = *tokenizer_.state_;
  if (id < 0 || id >= tokenizer_.size()) return "";
  const auto& piece = state.pieces[static_cast<std::size_t>(id)];
  const auto form = state.forms[static_cast<std::size_t>(id)];
  if (form == Form::special && !keep_special) return "";
  if (form == Form::byte || form == Form::printable) {
    first_ = false;
    bytes_ += form == Form::byte ? std::string(1, static_cast<char>(byte_of_piece(piece)))
                                 : bytes_of_printable(piece);
    return take_characters(/*all=*/false);
  }
  std::string text = take_characters(/*all=*/true);
  if (form != Form::words) {
    first_ = false;
    return text + piece;
  }
  std::string_view rest = piece;
  if (first_ && rest.starts_with(kSpaceMark)) rest.remove_prefix(kSpaceMark.size());
  first_ = first_ && piece.empty();
  while (!rest.empty()) {
    const bool mark = rest.starts_with(kSpaceMark);
    text += mark ? ' ' : rest[0];
    rest.remove_prefix(mark ? kSpaceMark.size() : 1);
  }
  return text;
}

std::string StreamDecoder::finish() { return take_characters(/*all=*/true); }

/// Moves whole characters out of bytes_; with `all`, also what can no longer become one.
/// SentencePiece writes U+FFFD for each byte of a broken character, byte-level BPE one for all of
/// them.
std::string StreamDecoder::take_characters(bool all) {
  const std::string_view bytes = bytes_;
  const bool one_for_all = tokenizer_.state_->is_byte_level();
  std::string text;
  std::size_t at = 0;
  while (at < bytes.size()) {
    const auto here = character_at(bytes, at);
    if (here.cut && !all) break;
    std::size_t length = here.length;
    if (!here.valid && one_for_all) {  // the bytes that were on the way to a character
      const auto on_the_way = [&](std::size_t n) {
        return at + n <= bytes.size() && character_at(bytes.substr(at, n), 0).cut;
      };
      while (on_the_way(length + 1)) ++length;
    }
    text += here.valid ? bytes.substr(at, length) : kReplacementUtf8;
    at += length;
  }
  bytes_.erase(0, at);
  return text;
}

}  // namespace llava::text
