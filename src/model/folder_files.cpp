#include "folder_files.h"

#include "parts.h"

#include "llava/base/files.h"

#include <algorithm>
#include <filesystem>
#include <functional>

namespace llava::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
};

void copy_files(const std::string& from, const std::string& to) {
  std::error_code ignored;
  if (fs::equivalent(from, to, ignored)) return;
  for (const auto* name : kTokenizerFiles)
    if (is_file(from + "/" + name)) write_file(to + "/" + name, read_file(from + "/" + name));
}

/// Changes a JSON object in a file, which goes when nothing is left in it. A missing file stays
/// missing unless `makes_it`.
void edit(const std::string& path, bool makes_it, const std::function<void(Json&)>& change) {
  if (!is_file(path) && !makes_it) return;
  Json json = is_file(path) ? read_json(path) : Json::object();
  expect(json.is_object(), Fault::data, path, ": expected an object");
  const auto before = json;
  change(json);
  if (json == before) return;
  if (json.empty()) {
    fs::remove(path);
  } else {
    write_file(path, json_text(json));
  }
}

Json token_object(const std::string& text) {
  return {{"content", text}, {"lstrip", false},      {"normalized", false},
          {"rstrip", false}, {"single_word", false}, {"special", true}};
}

}  // namespace

void copy_tokenizer(const std::string& from, const std::string& to,
                    const std::vector<AddedToken>& added) {
  copy_files(from, to);
  const bool has_tokenizer = is_file(to + "/tokenizer.model") || is_file(to + "/tokenizer.json");
  if (added.empty() || !has_tokenizer) return;
  const auto has_pad = std::any_of(added.begin(), added.end(),
                                   [](const AddedToken& token) { return token.first == "<pad>"; });
  edit(to + "/added_tokens.json", /*makes_it=*/true, [&](Json& json) {
    for (const auto& [text, id] : added) json[text] = id;
  });
  edit(to + "/tokenizer_config.json", /*makes_it=*/true, [&](Json& json) {
    if (!json.contains("tokenizer_class")) json["tokenizer_class"] = "LlamaTokenizer";
    auto& decoder = json["added_tokens_decoder"];
    if (!decoder.is_object()) decoder = Json::object();
    for (const auto& [text, id] : added) {
      for (auto item = decoder.begin(); item != decoder.end();) {  // one text, one id
        const bool is_same = item->is_object() && item->value("content", Json()) == Json(text);
        item = is_same ? decoder.erase(item) : std::next(item);
      }
      decoder[std::to_string(id)] = token_object(text);
    }
    if (has_pad) json["pad_token"] = "<pad>";
  });
  edit(to + "/special_tokens_map.json", /*makes_it=*/false, [&](Json& json) {
    if (has_pad) json["pad_token"] = "<pad>";
  });
  edit(to + "/tokenizer.json", /*makes_it=*/false, [&](Json& json) {
    auto& list = json["added_tokens"];
    if (!list.is_array()) list = Json::array();
    for (const auto& [text, id] : added) {
      const auto is_same = [&, &text = text](const Json& token) {
        return token.is_object() && token.value("content", Json()) == Json(text);
      };
      if (std::any_of(list.begin(), list.end(), is_same)) continue;
      Json token{{"id", id}};
      token.update(token_object(text));
      list.push_back(token);
    }
  });
}

void copy_tokenizer_cut(const std::string& from, const std::string& to, std::int64_t rows) {
  copy_files(from, to);
  const auto is_cut = [&](const Json& id) {
    return id.is_number_integer() && id.get<std::int64_t>() >= rows;
  };
  std::vector<std::string> dropped;  // texts of the tokens that go
  edit(to + "/added_tokens.json", false, [&](Json& json) {
    for (auto item = json.begin(); item != json.end();) {
      if (is_cut(*item)) dropped.push_back(item.key());
      item = is_cut(*item) ? json.erase(item) : std::next(item);
    }
  });
  edit(to + "/tokenizer.json", false, [&](Json& json) {
    if (!json.contains("added_tokens") || !json["added_tokens"].is_array()) return;
    auto& list = json["added_tokens"];
    for (auto item = list.begin(); item != list.end();) {
      const bool goes = item->is_object() && is_cut(item->value("id", Json()));
      item = goes ? list.erase(item) : std::next(item);
    }
  });
  const auto is_dropped = [&](const Json& value) {
    const auto text = value.is_object() ? value.value("content", Json()) : value;
    return text.is_string() &&
           std::find(dropped.begin(), dropped.end(), text.get<std::string>()) != dropped.end();
  };
  edit(to + "/tokenizer_config.json", false, [&](Json& json) {
    if (json.contains("added_tokens_decoder") && json["added_tokens_decoder"].is_object()) {
      auto& decoder = json["added_tokens_decoder"];
      for (auto item = decoder.begin(); item != decoder.end();) {
        const auto& key = item.key();
        const bool is_number = !key.empty() && key.size() < 10 &&
                               key.find_first_not_of("0123456789") == std::string::npos;
        const bool goes = is_number && std::stoll(key) >= rows;
        if (goes && item->is_object() && item->contains("content") &&
            (*item)["content"].is_string())
          dropped.push_back((*item)["content"].get<std::string>());
        item = goes ? decoder.erase(item) : std::next(item);
      }
      if (decoder.empty()) json.erase("added_tokens_decoder");
    }
    if (json.contains("pad_token") && is_dropped(json["pad_token"])) json["pad_token"] = "<unk>";
  });
  edit(to + "/special_tokens_map.json", false, [&](Json& json) {
    if (json.contains("pad_token") && is_dropped(json["pad_token"])) json["pad_token"] = "<unk>";
  });
}

Json generation_config(const LlavaConfig& config) {
  const auto& text = config.text;
  Json json{{"_from_model_config", true}};
  if (text.bos_token_id) json["bos_token_id"] = *text.bos_token_id;
  const auto& eos = text.eos_token_ids;
  if (!eos.empty()) json["eos_token_id"] = eos.size() == 1 ? Json(eos[0]) : Json(eos);
  if (text.pad_token_id) json["pad_token_id"] = *text.pad_token_id;
  return json;
}

Json processor_config(const LlavaConfig& config) {
  const bool is_next = config.merge.unpad;
  Json json{
      {"processor_class", config.is_video ? "LlavaNextVideoProcessor"
                          : is_next       ? "LlavaNextProcessor"
                                          : "LlavaProcessor"},
      {"image_token", "<image>"},
      {"patch_size", config.vision.patch_size},
      {"num_additional_image_tokens", 1},
      {"vision_feature_select_strategy", config.feature_select == "patch" ? "default" : "full"}};
  if (config.is_video) json["video_token"] = "<video>";
  return json;
}

}  // namespace llava::model
