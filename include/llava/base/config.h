// Config structs <-> JSON <-> command-line flags, from one list of fields. A config struct has
//
//   template <class Field> void fields(Field& field) {
//     field("learning_rate", learning_rate, "peak learning rate");
//   }
//
// and that list is its JSON keys, its flags and its help. Field types: bool, int64_t, double,
// std::string, std::vector of the last three, and std::optional of the first four.
#pragma once

#include "llava/base/check.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

/// JSON that keeps the order of keys, so that a file saved again looks like the one loaded.
using Json = nlohmann::ordered_json;

/// Parses a whole text.  Throws Error(data) with "where:line:column" for malformed JSON, a key that
/// an object has twice, invalid UTF-8, or nesting deeper than 256.
Json parse_json(std::string_view text, const std::string& where);

/// parse_json of a file.  Throws Error(data).
Json read_json(const std::string& path);

/// `json` as text, two spaces a level. Invalid UTF-8 in strings is replaced, never thrown.
std::string json_text(const Json& json);

/// The member of `names` closest to `name`, or "" when none is close enough to be a misspelling.
/// '-' and '_' count as equal.
std::string nearest_name(const std::string& name, const std::vector<std::string>& names);

/// " (did you mean \"X\"?)", or "" when nothing is close.
std::string suggestion(const std::string& name, const std::vector<std::string>& names);

/// Reads flag text into a field. Lists are comma-separated. `where` names the flag.
/// Throws Error(usage).
void parse_value(const std::string& text, const std::string& where, bool& value);
void parse_value(const std::string& text, const std::string& where, std::int64_t& value);
void parse_value(const std::string& text, const std::string& where, double& value);
void parse_value(const std::string& text, const std::string& where, std::string& value);

std::vector<std::string> split_list(const std::string& text);

template <class T>
void parse_value(const std::string& text, const std::string& where, std::vector<T>& value) {
  value.clear();
  for (const auto& part : split_list(text)) parse_value(part, where, value.emplace_back());
}

template <class T>
void parse_value(const std::string& text, const std::string& where, std::optional<T>& value) {
  parse_value(text, where, value.emplace());
}

/// Reads one JSON value into a field.  Throws Error(usage) naming `where` if the type is wrong;
/// a whole number is accepted for a double, nothing else is converted.
void read_value(const Json& json, const std::string& where, bool& value);
void read_value(const Json& json, const std::string& where, std::int64_t& value);
void read_value(const Json& json, const std::string& where, double& value);
void read_value(const Json& json, const std::string& where, std::string& value);

template <class T>
void read_value(const Json& json, const std::string& where, std::vector<T>& value) {
  expect(json.is_array(), Fault::usage, where, ": expected a list, found ", json.dump());
  value.clear();
  for (const auto& item : json) read_value(item, where, value.emplace_back());
}

template <class T>
void read_value(const Json& json, const std::string& where, std::optional<T>& value) {
  if (json.is_null()) {
    value.reset();
  } else {
    read_value(json, where, value.emplace());
  }
}

/// Fills a config struct from a JSON object and remembers which keys it knows.
class FieldReader {
 public:
  /// `where` names the object in messages, for example "stage1.json".
  FieldReader(const Json& object, std::string where);

  template <class T>
  void operator()(const char* key, T& value, const char* /*help*/) {
    known_.push_back(key);
    const auto found = object_.find(key);
    if (found != object_.end()) read_value(*found, where_ + ": \"" + key + "\"", value);
  }

  /// Throws Error(usage) naming an unknown key and the nearest known one.
  void reject_unknown_keys() const;

 private:
  const Json& object_;
  std::string where_;
  std::vector<std::string> known_;
};

/// Writes each field under its key.
class FieldWriter {
 public:
  template <class T>
  void operator()(const char* key, const T& value, const char* /*help*/) {
    object_[key] = value;
  }
  template <class T>
  void operator()(const char* key, const std::optional<T>& value, const char* /*help*/) {
    object_[key] = value ? Json(*value) : Json(nullptr);
  }

  Json take() { return std::move(object_); }

 private:
  Json object_ = Json::object();
};

/// A config struct with its defaults overridden by `object`; unknown keys are errors.
template <class Config>
Config read_config(const Json& object, const std::string& where) {
  Config config;
  FieldReader reader(object, where);
  config.fields(reader);
  reader.reject_unknown_keys();
  return config;
}

template <class Config>
Json config_json(Config config) {
  FieldWriter writer;
  config.fields(writer);
  return writer.take();
}

}  // namespace llava
