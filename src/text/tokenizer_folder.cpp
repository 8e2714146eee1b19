// Tokenizer::load: from a folder's files to the tables that encode and decode.
#include "tokenizer_json.h"
#include "tokenizer_state.h"

#include "llava/base/check.h"
#include "llava/base/files.h"

#include <algorithm>
#include <filesystem>

namespace llava::text {
namespace {

/// Gives every added token its id and enters it into the tables by id. Returns, by id of the
/// model's own pieces, which of them text must never become.
std::vector<bool> enter_added(std::vector<AddedToken>& added, std::vector<std::string>& pieces,
                              std::vector<Form>& forms) {
  std::vector<bool> is_control(pieces.size());
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
    if (id < is_control.size() && token.is_control()) is_control[id] = true;
  }
  return is_control;
}

/// Adds the tokens that SentencePiece's own tables make special, unless the folder's files do.
void add_model_specials(const SentencePieceModel& model, TokenizerSettings& settings) {
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& [text, score, kind] = model.pieces[id];
    AddedToken token{.text = text, .id = static_cast<std::int64_t>(id)};
    if (kind == PieceKind::unknown && !settings.unk) settings.unk = text;
    if (kind == PieceKind::control && text == model.bos && !settings.bos) settings.bos = text;
    if (kind == PieceKind::control && text == model.eos && !settings.eos) settings.eos = text;
    const bool named = text == settings.unk || text == settings.bos || text == settings.eos;
    token.special = kind != PieceKind::user_defined;
    const bool markup = kind == PieceKind::user_defined && token.is_control();
    if (named || markup) settings.added.push_back(std::move(token));
  }
  keep_first_of_each(settings.added);
}

/// By id, the piece without its space mark, as transformers 4.31 looks it up again.
std::vector<std::int64_t> pieces_without_mark(const std::vector<std::string>& pieces,
                                              std::int64_t unk) {
  std::unordered_map<std::string_view, std::int64_t> ids;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    ids.emplace(pieces[id], static_cast<std::int64_t>(id));
  }
  std::vector<std::int64_t> without(pieces.size());
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    std::string_view piece = pieces[id];
    if (piece.starts_with(kSpaceMark)) piece.remove_prefix(kSpaceMark.size());
    const auto found = ids.find(piece);
    without[id] = found != ids.end() ? found->second : unk;
  }
  return without;
}

}  // namespace

/// Fills a State; one call of either function, then finish().
struct Tokenizer::Loader {
  TokenizerSettings settings;
  TokenizerOptions options;
  std::shared_ptr<State> state = std::make_shared<State>();

  void add_sentencepiece(SentencePieceModel model, const std::optional<JsonSpacing>& json) {
    add_model_specials(model, settings);
    auto& pieces = state->pieces;
    auto& forms = state->forms;
    for (const auto& [text, score, kind] : model.pieces) {
      const bool special = kind == PieceKind::control || kind == PieceKind::unknown;
      pieces.push_back(text);
      forms.push_back(kind == PieceKind::byte ? Form::byte : special ? Form::special : Form::words);
    }
    const auto is_control = enter_added(settings.added, pieces, forms);
    for (std::size_t id = 0; id < is_control.size(); ++id) {
      auto& kind = model.pieces[id].kind;
      if (is_control[id] && kind != PieceKind::unknown) kind = PieceKind::control;
    }
    const bool prefix = model.add_dummy_prefix;
    state->encoder = PieceEncoder(sentencepiece_vocabulary(std::move(model)));
    const bool legacy = settings.legacy.value_or(!json || json->every_segment);
    set_spacing(legacy, prefix, prefix && settings.add_prefix_space.value_or(true));
    state->adds_bos = settings.add_bos.value_or(true);
  }

  void add_json(JsonTokenizer json) {
    if (!settings.bos) settings.bos = json.bos;
    state->adds_bos = settings.add_bos.value_or(json.bos.has_value());
    if (auto* words = std::get_if<PieceVocabulary>(&json.vocabulary)) {
      add_pieces(std::move(*words));
      set_spacing(json.spacing.every_segment, json.spacing.prefix, json.spacing.prefix);
      state->prefixing.unless_space = json.spacing.unless_space && !options.spacing;
    } else {
      add_bytes(std::move(std::get<ByteVocabulary>(json.vocabulary)));
    }
  }

  Tokenizer finish() {
    for (const auto& token : settings.added) {
      if (token.special) state->specials[token.text] = token.id;
    }
    const auto id_of = [&](const std::optional<std::string>& text) -> std::optional<std::int64_t> {
      const auto found = state->specials.find(text.value_or(""));
      return found == state->specials.end() ? std::nullopt : std::optional(found->second);
    };
    state->bos = id_of(settings.bos);
    state->eos = id_of(settings.eos);
    state->unk = id_of(settings.unk);
    state->pad = id_of(settings.pad);
    state->adds_bos = state->adds_bos && state->bos;
    state->max_length = settings.max_length;
    if (state->prefixing.cut_again) {
      state->without_mark = pieces_without_mark(state->pieces, state->unk.value_or(0));
    }
    state->added = AddedTokens(std::move(settings.added));
    Tokenizer tokenizer;
    tokenizer.state_ = std::move(state);
    return tokenizer;
  }

 private:
  void set_spacing(bool legacy, bool prefix_segments, bool prefix_text) {
    state->spacing = options.spacing.value_or(legacy ? Spacing::legacy : Spacing::first_segment);
    state->prefixing.every_segment = prefix_segments && state->spacing != Spacing::first_segment;
    state->prefixing.whole_text = prefix_text;
    state->prefixing.cut_again = state->spacing == Spacing::first_segment_431;
  }

  void add_pieces(PieceVocabulary vocabulary) {
    for (const auto& piece : vocabulary.pieces) {
      state->pieces.push_back(piece.text);
      state->forms.push_back(piece.kind == PieceKind::byte ? Form::byte : Form::words);
    }
    const auto is_control = enter_added(settings.added, state->pieces, state->forms);
    for (std::size_t id = 0; id < is_control.size(); ++id) {
      if (is_control[id]) vocabulary.pieces[id].kind = PieceKind::control;
    }
    std::erase_if(vocabulary.merges, [&](const auto& merge) { return is_control[merge.result]; });
    state->encoder = PieceEncoder(vocabulary);
  }

  void add_bytes(ByteVocabulary vocabulary) {
    state->pieces = vocabulary.pieces;
    state->forms.assign(state->pieces.size(), Form::printable);
    const auto is_control = enter_added(settings.added, state->pieces, state->forms);
    for (std::size_t id = 0; id < is_control.size(); ++id) {
      if (is_control[id]) vocabulary.pieces[id].clear();
    }
    std::erase_if(vocabulary.merges, [&](const auto& merge) { return is_control[merge.result]; });
    state->encoder = ByteEncoder(vocabulary);
  }
};

Tokenizer Tokenizer::load(const std::string& folder, const TokenizerOptions& options) {
  const std::string model_path = folder + "/tokenizer.model",
                    json_path = folder + "/tokenizer.json";
  const auto json = read_tokenizer_json(json_path);
  Loader loader{read_settings(folder, json), options};
  if (std::filesystem::exists(model_path)) {
    loader.add_sentencepiece(parse_sentencepiece(read_file(model_path), model_path),
                             json_spacing(json));
  } else {
    expect(json.is_object(), Fault::data, folder,
           ": holds neither tokenizer.model nor tokenizer.json; copy one from the language model's "
           "folder");
    loader.add_json(parse_tokenizer_json(json, json_path));
  }
  return loader.finish();
}

}  // namespace llava::text
