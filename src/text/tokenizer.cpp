#include "llava/text/tokenizer.h"

#include "added_tokens.h"
#include "piece_encoder.h"
#include "unicode.h"

#include "llava/base/check.h"
#include "llava/base/files.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>

namespace llava::text {
namespace {

constexpr std::int64_t kImageToken = -200;              // input's placeholder, for piece()
constexpr std::size_t kMaxText = std::size_t{1} << 30;  // offsets inside are 32 bits wide

/// How an id becomes text.
enum class Form : std::uint8_t {
  words,    // a space mark is a space
  byte,     // "<0x0A>"
  literal,  // an added token that is no control token: as it stands
  special,  // nothing, unless asked for
};

/// Where a dummy space mark is put.
struct Prefixing {
  bool every_segment = true;
  bool first_segment = true;
  bool unless_space = false;  // Metaspace: not before a segment that begins with a space
  bool cut_again = false;     // transformers 4.31: taken off the first piece of later segments
};

}  // namespace

struct Tokenizer::State {
  std::vector<std::string> pieces;  // by id, as stored
  std::vector<Form> forms;          // by id
  AddedTokens added;
  std::unordered_map<std::string, std::int64_t> specials;
  std::optional<PieceEncoder> words;
  Prefixing prefixing;
  std::vector<std::int64_t> without_mark;  // by id, for Prefixing::cut_again
  Spacing spacing = Spacing::legacy;
  bool adds_bos = false;
  std::optional<std::int64_t> bos, eos, unk, pad;
  std::int64_t max_length = 0;

  void encode_segment(std::string_view text, Range segment, bool is_first, bool before_special,
                      std::vector<Token>& out) const;
};

namespace {

/// Gives every added token its id and enters it into the tables of ids.
void enter_added(std::vector<AddedToken>& added, std::vector<std::string>& pieces,
                 std::vector<Form>& forms) {
  std::unordered_map<std::string, std::int64_t> ids;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    ids.emplace(pieces[id], static_cast<std::int64_t>(id));
  }
  for (auto& token : added) {
    if (token.id < 0) {
      const auto known = ids.find(token.text);
      token.id = known != ids.end() ? known->second : static_cast<std::int64_t>(pieces.size());
    }
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= pieces.size()) {
      pieces.resize(id + 1);
      forms.resize(id + 1, Form::literal);
    }
    pieces[id] = token.text;
    forms[id] = token.special ? Form::special : Form::literal;
    ids[token.text] = token.id;
  }
}

/// Adds the tokens that SentencePiece's own tables make special, unless the folder's files do.
void add_model_specials(const SentencePieceModel& model, TokenizerSettings& settings) {
  const auto known = [&](const std::string& text) {
    return std::any_of(settings.added.begin(), settings.added.end(),
                       [&](const AddedToken& token) { return token.text == text; });
  };
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& [text, score, kind] = model.pieces[id];
    AddedToken token{.text = text, .id = static_cast<std::int64_t>(id)};
    if (kind == PieceKind::unknown && !settings.unk) settings.unk = text;
    if (kind == PieceKind::control && text == model.bos && !settings.bos) settings.bos = text;
    if (kind == PieceKind::control && text == model.eos && !settings.eos) settings.eos = text;
    const bool named = text == settings.unk || text == settings.bos || text == settings.eos;
    token.special = kind != PieceKind::user_defined;
    const bool markup = kind == PieceKind::user_defined && token.is_control();
    if ((named || markup) && !known(text)) settings.added.push_back(std::move(token));
  }
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& folder, const TokenizerOptions& options) {
  const std::string model_path = folder + "/tokenizer.model";
  expect(std::filesystem::exists(model_path), Fault::data, folder,
         ": holds no tokenizer.model; copy it from the language model's folder");
  auto model = parse_sentencepiece(read_file(model_path), model_path);
  auto settings = read_settings(folder, nullptr);
  add_model_specials(model, settings);

  auto state = std::make_shared<State>();
  for (const auto& piece : model.pieces) {
    state->pieces.push_back(piece.text);
    state->forms.push_back(piece.kind == PieceKind::byte ? Form::byte
                           : piece.kind == PieceKind::control || piece.kind == PieceKind::unknown
                               ? Form::special
                               : Form::words);
  }
  enter_added(settings.added, state->pieces, state->forms);
  for (const auto& token : settings.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (token.special) state->specials[token.text] = token.id;
    if (id >= model.pieces.size() || !token.is_control()) continue;
    // Text must never merge into a control token.
    if (model.pieces[id].kind != PieceKind::unknown) model.pieces[id].kind = PieceKind::control;
  }
  const bool dummy_prefix = model.add_dummy_prefix;
  state->words.emplace(sentencepiece_vocabulary(std::move(model)));

  state->spacing = options.spacing.value_or(
      settings.legacy.value_or(true) ? Spacing::legacy : Spacing::first_segment);
  state->prefixing = {.every_segment = dummy_prefix && state->spacing != Spacing::first_segment,
                      .first_segment = dummy_prefix && settings.add_prefix_space.value_or(true),
                      .cut_again = state->spacing == Spacing::first_segment_431};
  const auto id_of = [&](const std::optional<std::string>& text) -> std::optional<std::int64_t> {
    if (!text) return std::nullopt;
    const auto found = state->specials.find(*text);
    return found == state->specials.end() ? std::nullopt : std::optional(found->second);
  };
  state->bos = id_of(settings.bos);
  state->eos = id_of(settings.eos);
  state->unk = id_of(settings.unk);
  state->pad = id_of(settings.pad);
  state->adds_bos = state->bos && settings.add_bos.value_or(true);
  state->max_length = settings.max_length;
  if (state->prefixing.cut_again) {
    std::unordered_map<std::string_view, std::int64_t> ids;
    for (std::size_t id = 0; id < state->pieces.size(); ++id) {
      ids.emplace(state->pieces[id], static_cast<std::int64_t>(id));
    }
    for (std::size_t id = 0; id < state->pieces.size(); ++id) {
      std::string_view piece = state->pieces[id];
      state->without_mark.push_back(static_cast<std::int64_t>(id));
      if (!piece.starts_with(kSpaceMark)) continue;
      const auto rest = ids.find(piece.substr(kSpaceMark.size()));
      state->without_mark.back() = rest != ids.end() ? rest->second : state->unk.value_or(0);
    }
  }
  state->added = AddedTokens(std::move(settings.added));

  Tokenizer tokenizer;
  tokenizer.state_ = std::move(state);
  return tokenizer;
}

void Tokenizer::State::encode_segment(std::string_view text, Range segment, bool is_first,
                                      bool before_special, std::vector<Token>& out) const {
  const auto words_of = text.substr(segment.begin, segment.end - segment.begin);
  const bool begins_with_space = words_of.starts_with(' ') || words_of.starts_with(kSpaceMark);
  const bool only_first = is_first && !prefixing.every_segment && prefixing.first_segment;
  // The mark before the whole text stands alone when an added token comes first; a special one
  // drops it.  Source: transformers 4.37.2, tokenization_llama.py, tokenize.
  if (words_of.empty() && (!only_first || before_special || prefixing.unless_space)) return;
  const bool prefix =
      (prefixing.every_segment || only_first) && !(prefixing.unless_space && begins_with_space);
  const std::size_t start = out.size();
  words->encode(text, segment, prefix, out);
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
    state_->encode_segment(text, {at, match.begin}, at == 0, match.token && match.token->special,
                           out);
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
  if (form == Form::byte) {
    first_ = false;
    bytes_ += static_cast<char>(byte_of_piece(piece));
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
std::string StreamDecoder::take_characters(bool all) {
  std::string text;
  std::size_t at = 0;
  while (at < bytes_.size()) {
    const auto here = character_at(bytes_, at);
    if (here.cut && !all) break;
    text += here.valid ? std::string_view(bytes_).substr(at, here.length) : kReplacementUtf8;
    at += here.length;
  }
  bytes_.erase(0, at);
  return text;
}

}  // namespace llava::text
