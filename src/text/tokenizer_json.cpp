#include "tokenizer_json.h"

#include "added_tokens.h"

#include "llava/base/check.h"
#include "llava/base/files.h"

#include <filesystem>
#include <unordered_map>

namespace llava::text {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kMaxBytes = std::uintmax_t{128}
                                     << 20;  // Llama-4's, the largest seen: 28 MB

/// A member of an object; null when it is missing or `object` is no object.
const json& member(const json& object, const char* key) {
  static const json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

std::string text_of(const json& object, const char* key) {
  const auto& value = member(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

bool flag_of(const json& object, const char* key, bool otherwise) {
  const auto& value = member(object, key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

/// A step of a pipeline, or the steps of a "Sequence".
std::vector<json> steps_of(const json& step, const char* key) {
  if (step.is_null()) return {};
  const auto& list = member(step, key);
  if (text_of(step, "type") != "Sequence" || !list.is_array()) return {step};
  return list.get<std::vector<json>>();
}

[[noreturn]] void unsupported(const std::string& path, const std::string& what, const json& step) {
  fail(Fault::data, path, ": ", what, " of type \"", text_of(step, "type"),
       "\" is not supported; only Llama's, Qwen2's and GPT-2's kinds of tokenizer are");
}

bool is_space_to_mark(const json& step) {
  return text_of(step, "type") == "Replace" && text_of(step, "content") == kSpaceMark &&
         text_of(member(step, "pattern"), "String") == " ";
}

JsonSpacing metaspace(const json& step) {
  auto scheme = text_of(step, "prepend_scheme");
  if (scheme.empty()) scheme = flag_of(step, "add_prefix_space", true) ? "always" : "never";
  return {.every_segment = scheme == "always",
          .prefix = scheme != "never",
          .unless_space = true,
          .split_at_every_mark = flag_of(step, "split", true)};
}

struct Vocabulary {
  std::vector<std::string> pieces;
  std::unordered_map<std::string_view, std::uint32_t> ids;  // views into `pieces`
};

Vocabulary read_vocabulary(const json& model, const std::string& path) {
  const auto& vocab = member(model, "vocab");
  expect(vocab.is_object() && !vocab.empty(), Fault::data, path,
         ": \"model.vocab\" must be an object of pieces and ids");
  Vocabulary out;
  std::int64_t largest = 0;
  for (const auto& [piece, id] : vocab.items()) {
    expect(id.is_number_integer() && id.get<std::int64_t>() >= 0 &&
               id.get<std::int64_t>() < kMaxTokenId,
           Fault::data, path, ": \"model.vocab\": piece \"", piece, "\" has no id in 0..",
           kMaxTokenId - 1);
    expect(!piece.empty() && piece.size() <= kMaxTokenBytes, Fault::data, path,
           ": \"model.vocab\": id ", id.get<std::int64_t>(), " is a piece of ", piece.size(),
           " bytes");
    largest = std::max(largest, id.get<std::int64_t>());
  }
  out.pieces.resize(static_cast<std::size_t>(largest) + 1);
  for (const auto& [piece, id] : vocab.items()) {
    auto& slot = out.pieces[id.get<std::size_t>()];
    expect(slot.empty(), Fault::data, path, ": \"model.vocab\": pieces \"", slot, "\" and \"",
           piece, "\" have the same id");
    slot = piece;
  }
  for (std::uint32_t id = 0; id < out.pieces.size(); ++id) {
    if (!out.pieces[id].empty()) out.ids.emplace(out.pieces[id], id);
  }
  return out;
}

/// "a b" in old files, ["a", "b"] in new ones.
std::vector<Bpe::Merge> read_merges(const json& model, const Vocabulary& vocabulary,
                                    const std::string& path) {
  const auto& list = member(model, "merges");
  expect(list.is_array() && list.size() < Bpe::kNone, Fault::data, path,
         ": \"model.merges\" must be a list");
  std::vector<Bpe::Merge> merges;
  merges.reserve(list.size());
  std::string whole;
  const auto id_of = [&](std::string_view piece) {
    const auto found = vocabulary.ids.find(piece);
    expect(found != vocabulary.ids.end(), Fault::data, path, ": \"model.merges\": entry ",
           merges.size(), " needs \"", piece, "\", which \"model.vocab\" does not hold");
    return found->second;
  };
  for (const auto& entry : list) {
    std::string left, right;
    if (entry.is_string()) {
      const auto& text = entry.get_ref<const std::string&>();
      const auto space = text.find(' ');
      left = text.substr(0, space);
      right = space == std::string::npos ? "" : text.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    }
    expect(!left.empty() && !right.empty(), Fault::data, path, ": \"model.merges\": entry ",
           merges.size(), " is not a pair of pieces");
    whole = left + right;
    merges.push_back(
        {id_of(left), id_of(right), static_cast<std::uint32_t>(merges.size()), id_of(whole)});
  }
  return merges;
}

void check_model(const json& model, const std::string& path) {
  const auto type = text_of(model, "type");
  expect(model.is_object() && (type == "BPE" || (type.empty() && model.contains("merges"))),
         Fault::data, path, ": the model type is \"", type, "\", only BPE is supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    expect(text_of(model, key).empty(), Fault::data, path, ": \"model.", key,
           "\" is not supported");
  }
  const auto& dropout = member(model, "dropout");
  expect(dropout.is_null() || dropout == 0.0, Fault::data, path,
         ": \"model.dropout\" is not supported; set it to null");
}

/// The byte-level kind's pre-tokenizer: ByteLevel alone, or a Split before it. Nothing for others.
std::optional<WordPattern> byte_level_pattern(const std::vector<json>& steps,
                                              const std::string& path) {
  if (steps.empty() || text_of(steps.back(), "type") != "ByteLevel") return std::nullopt;
  const auto& byte_level = steps.back();
  expect(!flag_of(byte_level, "add_prefix_space", true), Fault::data, path,
         ": ByteLevel with \"add_prefix_space\" is not supported");
  const bool own = flag_of(byte_level, "use_regex", true);
  if (steps.size() == 1 && own) return WordPattern{.gpt_2 = true};
  const auto& split = steps.front();
  const bool isolated =
      text_of(split, "behavior") == "Isolated" && !flag_of(split, "invert", false);
  if (steps.size() != 2 || own || text_of(split, "type") != "Split" || !isolated) {
    unsupported(path, "the pre-tokenizer's first step", split);
  }
  return word_pattern(text_of(member(split, "pattern"), "Regex"), path);
}

bool wants_nfc(const json& normalizer, const std::string& path) {
  bool nfc = false;
  for (const auto& step : steps_of(normalizer, "normalizers")) {
    if (text_of(step, "type") != "NFC") unsupported(path, "a normalizer", step);
    nfc = true;
  }
  return nfc;
}

std::optional<std::string> leading_token(const json& post_processor) {
  for (const auto& step : steps_of(post_processor, "processors")) {
    const auto& single = member(step, "single");
    if (text_of(step, "type") != "TemplateProcessing" || !single.is_array() || single.empty()) {
      continue;
    }
    const auto id = text_of(member(single.front(), "SpecialToken"), "id");
    if (!id.empty()) return id;
  }
  return std::nullopt;
}

PieceVocabulary piece_vocabulary(const json& model, Vocabulary vocabulary,
                                 std::vector<Bpe::Merge> merges, const std::string& path) {
  PieceVocabulary out;
  out.byte_fallback = flag_of(model, "byte_fallback", false);
  out.fuse_unk = flag_of(model, "fuse_unk", false);
  expect(!flag_of(model, "ignore_merges", false), Fault::data, path,
         ": \"model.ignore_merges\" is supported for byte-level tokenizers only");
  const auto unk = vocabulary.ids.find(text_of(model, "unk_token"));
  if (unk != vocabulary.ids.end()) out.unk = unk->second;
  for (const auto& piece : vocabulary.pieces) {
    const bool byte = out.byte_fallback && byte_of_piece(piece) >= 0;
    out.pieces.push_back({piece, 0, byte ? PieceKind::byte : PieceKind::normal});
  }
  out.merges = std::move(merges);
  return out;
}

}  // namespace

json tokenizer_json(const std::string& text, const std::string& path) {
  expect(text.size() <= kMaxBytes, Fault::data, path, ": has ", text.size(),
         " bytes, more than any tokenizer; is it another file?");
  try {
    auto parsed = json::parse(text);
    expect(parsed.is_object(), Fault::data, path, ": expected an object");
    return parsed;
  } catch (const json::parse_error& error) {
    fail(Fault::data, path, ": byte ", error.byte, ": not valid JSON; copy the file again");
  }
}

json read_tokenizer_json(const std::string& path) {
  return std::filesystem::exists(path) ? tokenizer_json(read_file(path), path) : json(nullptr);
}

std::optional<JsonSpacing> json_spacing(const json& file) {
  std::optional<JsonSpacing> spacing;
  for (const auto& step : steps_of(member(file, "normalizer"), "normalizers")) {
    if (text_of(step, "type") == "Prepend" && text_of(step, "prepend") == kSpaceMark) {
      spacing = JsonSpacing{.every_segment = true};
    } else if (!is_space_to_mark(step)) {
      return std::nullopt;
    } else if (!spacing) {
      spacing = JsonSpacing{.prefix = false};
    }
  }
  for (const auto& step : steps_of(member(file, "pre_tokenizer"), "pretokenizers")) {
    const bool known =
        text_of(step, "type") == "Metaspace" && text_of(step, "replacement") == kSpaceMark;
    if (spacing || !known) return std::nullopt;
    spacing = metaspace(step);
  }
  return spacing;
}

JsonTokenizer parse_tokenizer_json(const json& file, const std::string& path) {
  const auto& model = member(file, "model");
  check_model(model, path);
  auto vocabulary = read_vocabulary(model, path);
  auto merges = read_merges(model, vocabulary, path);
  JsonTokenizer out;
  out.bos = leading_token(member(file, "post_processor"));
  const auto steps = steps_of(member(file, "pre_tokenizer"), "pretokenizers");
  if (const auto pattern = byte_level_pattern(steps, path)) {
    out.vocabulary = ByteVocabulary{.pieces = std::move(vocabulary.pieces),
                                    .merges = std::move(merges),
                                    .pattern = *pattern,
                                    .nfc = wants_nfc(member(file, "normalizer"), path),
                                    .ignore_merges = flag_of(model, "ignore_merges", false)};
    return out;
  }
  const auto spacing = json_spacing(file);
  expect(spacing.has_value(), Fault::data, path, ": the normalizer (\"",
         text_of(member(file, "normalizer"), "type"), "\") and pre-tokenizer (\"",
         text_of(member(file, "pre_tokenizer"), "type"),
         "\") are not those of Llama, Qwen2 or GPT-2; this kind of tokenizer is not supported");
  out.spacing = *spacing;
  auto pieces = piece_vocabulary(model, std::move(vocabulary), std::move(merges), path);
  pieces.split_at_every_mark = spacing->split_at_every_mark;
  out.vocabulary = std::move(pieces);
  return out;
}

}  // namespace llava::text
