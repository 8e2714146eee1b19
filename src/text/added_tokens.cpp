#include "added_tokens.h"

#include "unicode.h"

#include "llava/base/config.h"
#include "llava/base/files.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <unordered_set>

namespace llava::text {
namespace {

/// One JSON file of the folder; null when there is none.
struct File {
  File(const std::string& folder, const std::string& name) : path(folder + "/" + name) {
    if (!std::filesystem::exists(path)) return;
    json = read_json(path);
    expect(json.is_object(), Fault::data, path, ": expected an object");
  }

  const Json* find(const std::string& key) const {
    if (!json.is_object()) return nullptr;
    const auto found = json.find(key);
    return found == json.end() || found->is_null() ? nullptr : &*found;
  }
  std::optional<bool> flag(const std::string& key) const {
    const auto* value = find(key);
    if (!value) return std::nullopt;
    expect(value->is_boolean(), Fault::data, path, ": \"", key, "\" must be true or false");
    return value->get<bool>();
  }

  std::string path;
  Json json;
};

/// A token written as a string or as an object with "content".
template <class AnyJson>
AddedToken read_token(const AnyJson& value, const std::string& where) {
  AddedToken token;
  const auto content = value.is_object() ? value.find("content") : value.end();
  const auto& text = value.is_object() && content != value.end() ? *content : value;
  expect(text.is_string(), Fault::data, where,
         ": expected a token's text or an object with \"content\"");
  token.text = text.template get<std::string>();
  expect(!token.text.empty() && token.text.size() <= kMaxTokenBytes, Fault::data, where,
         ": a token of ", token.text.size(), " bytes");
  if (!value.is_object()) return token;
  const auto flag = [&](const char* key, bool& out) {
    const auto found = value.find(key);
    if (found == value.end()) return;
    expect(found->is_boolean(), Fault::data, where, ": \"", key, "\" must be true or false");
    out = found->template get<bool>();
  };
  flag("special", token.special);
  flag("lstrip", token.lstrip);
  flag("rstrip", token.rstrip);
  flag("single_word", token.single_word);
  return token;
}

void check_id(std::int64_t id, const std::string& where) {
  expect(id >= 0 && id < kMaxTokenId, Fault::data, where, ": token id ", id, " is not in 0..",
         kMaxTokenId - 1);
}

template <class AnyJson>
std::int64_t read_id(const AnyJson& value, const std::string& where) {
  expect(value.is_number_integer(), Fault::data, where, ": expected a token id");
  const auto id = value.template get<std::int64_t>();
  check_id(id, where);
  return id;
}

void read_added_decoder(const File& config, const Json& decoder, std::vector<AddedToken>& added) {
  const auto where = config.path + ": \"added_tokens_decoder\"";
  expect(decoder.is_object(), Fault::data, where, " must be an object");
  for (const auto& [key, value] : decoder.items()) {
    auto token = read_token(value, where);
    const char* end = key.data() + key.size();
    const auto [stop, error] = std::from_chars(key.data(), end, token.id);
    expect(error == std::errc() && stop == end, Fault::data, where, ": \"", key,
           "\" is not a token id");
    check_id(token.id, where);
    added.push_back(std::move(token));
  }
}

void read_json_added(const std::string& folder, const nlohmann::json& tokenizer_json,
                     std::vector<AddedToken>& added) {
  if (!tokenizer_json.is_object()) return;
  const auto found = tokenizer_json.find("added_tokens");
  if (found == tokenizer_json.end() || found->is_null()) return;
  const auto where = folder + "/tokenizer.json: \"added_tokens\"";
  expect(found->is_array(), Fault::data, where, " must be a list");
  for (const auto& value : *found) {
    expect(value.is_object() && value.contains("id"), Fault::data, where, ": a token without id");
    auto token = read_token(value, where);
    token.id = read_id(value["id"], where);
    added.push_back(std::move(token));
  }
}

/// bos, eos, unk, pad and the nameless ones of one file; later files override earlier ones.
void read_named(const File& file, TokenizerSettings& settings, std::vector<AddedToken>& named) {
  const auto one = [&](const char* key, std::optional<std::string>* text) {
    const auto* value = file.find(key);
    const bool nameless =
        value && (*value == "" || (value->is_object() && value->value("content", Json()) == ""));
    if (!value || nameless) return;  // early Llama folders leave the names empty
    auto token = read_token(*value, file.path + ": \"" + key + "\"");
    token.special = true;
    if (text) *text = token.text;
    named.push_back(std::move(token));
  };
  one("bos_token", &settings.bos);
  one("eos_token", &settings.eos);
  one("unk_token", &settings.unk);
  one("pad_token", &settings.pad);
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto* list = file.find(key);
    if (!list) continue;
    expect(list->is_structured(), Fault::data, file.path, ": \"", key, "\" must be a list");
    for (const auto& value : *list) {
      auto token = read_token(value, file.path + ": \"" + key + "\"");
      token.special = true;
      named.push_back(std::move(token));
    }
  }
}

/// The character that ends just before byte `end` of a text that begins at `begin`.
Character character_before(std::string_view text, std::size_t begin, std::size_t end) {
  std::size_t at = end;
  do {
    --at;
  } while (at > begin && end - at < 4 && (text[at] & 0xC0) == 0x80);
  const auto here = character_at(text.substr(0, end), at);
  return at + here.length == end ? here : Character{};
}

bool is_word_character(char32_t code) {
  const auto kind = class_of(code);
  return code == '_' || kind == CharacterClass::letter || kind == CharacterClass::number;
}

bool inside_word(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin > 0 && is_word_character(character_before(text, 0, begin).code)) ||
         (end < text.size() && is_word_character(character_at(text, end).code));
}

/// Moves the ends of a match over the white space that its token swallows.
void swallow_space(std::string_view text, std::size_t from, AddedMatch& match) {
  const auto is_space = [](const Character& c) {
    return class_of(c.code) == CharacterClass::space;
  };
  while (match.token->lstrip && match.begin > from) {
    const auto before = character_before(text, from, match.begin);
    if (!is_space(before)) break;
    match.begin -= before.length;
  }
  while (match.token->rstrip && match.end < text.size()) {
    const auto after = character_at(text, match.end);
    if (!is_space(after)) break;
    match.end += after.length;
  }
}

}  // namespace

void keep_first_of_each(std::vector<AddedToken>& tokens) {
  std::unordered_set<std::string> texts;
  std::erase_if(tokens, [&](const AddedToken& token) { return !texts.insert(token.text).second; });
}

TokenizerSettings read_settings(const std::string& folder, const nlohmann::json& tokenizer_json) {
  const File config(folder, "tokenizer_config.json");
  const File map(folder, "special_tokens_map.json");
  const File plain(folder, "added_tokens.json");
  TokenizerSettings settings;
  settings.legacy = config.flag("legacy");
  settings.add_bos = config.flag("add_bos_token");
  settings.add_prefix_space = config.flag("add_prefix_space");
  if (const auto* length = config.find("model_max_length")) {
    expect(length->is_number(), Fault::data, config.path,
           ": \"model_max_length\" must be a number");
    const double value = length->get<double>();  // 1e30 stands for no limit
    settings.max_length = value >= 1 && value < 1e12 ? static_cast<std::int64_t>(value) : 0;
  }

  const auto* decoder = config.find("added_tokens_decoder");
  if (decoder) read_added_decoder(config, *decoder, settings.added);
  read_json_added(folder, tokenizer_json, settings.added);
  if (!decoder && plain.json.is_object()) {
    for (const auto& [text, id] : plain.json.items()) {
      auto token = read_token(Json(text), plain.path);
      token.id = read_id(id, plain.path);
      settings.added.push_back(std::move(token));
    }
  }
  std::vector<AddedToken> named;
  read_named(config, settings, named);
  if (!decoder) read_named(map, settings, named);
  for (auto& token : named) settings.added.push_back(std::move(token));
  keep_first_of_each(settings.added);
  return settings;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const auto& a, const auto& b) { return a.text.size() > b.text.size(); });
  for (std::uint32_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<unsigned char>(tokens_[i].text[0])].push_back(i);
  }
}

AddedMatch AddedTokens::find(std::string_view text, std::size_t from,
                             const std::vector<Range>& literal, std::size_t& next_literal) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    const auto& candidates = by_first_byte_[static_cast<unsigned char>(text[at])];
    if (candidates.empty()) continue;
    while (next_literal < literal.size() && literal[next_literal].end <= at) ++next_literal;
    const std::size_t quote =  // where a person's words begin or go on
        next_literal < literal.size() ? literal[next_literal].begin : text.size();
    for (const auto index : candidates) {
      const auto& token = tokens_[index];
      if (!text.substr(at).starts_with(token.text)) continue;
      AddedMatch match{at, at + token.text.size(), &token};
      if (match.end > quote && token.is_control()) continue;
      if (token.single_word && inside_word(text, match.begin, match.end)) continue;
      swallow_space(text, from, match);
      return match;
    }
  }
  return {text.size(), text.size(), nullptr};
}

}  // namespace llava::text
