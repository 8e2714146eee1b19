// Typed look-ups in the JSON files of a model folder. They are others' files: unknown keys are
// fine, what is read must have the right type and a sane size.
#pragma once

#include "llava/base/config.h"

#include <cmath>
#include <type_traits>

namespace llava::model {

inline constexpr std::int64_t kLargestSize = 1 << 24;  // of any width, count of rows or length
inline constexpr std::int64_t kMostLayers = 1024;

/// Typed look-ups in one object of a file; null counts as absent. Messages name file and key.
class Keys {
 public:
  Keys(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    expect(object.is_object(), Fault::data, where_, ": expected an object, found ",
           object.type_name());
  }

  const std::string& where() const { return where_; }
  std::string where(const char* key) const { return where_ + ": \"" + key + "\""; }

  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has(const char* key) const { return find(key) != nullptr; }
  bool is_null(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && found->is_null();
  }

  template <class T>
  T get(const char* key, const T& otherwise) const {
    const auto* json = find(key);
    return json ? cast<T>(*json, key) : otherwise;
  }

  /// A size: between 1 and `most`.
  std::int64_t size(const char* key, std::int64_t otherwise,
                    std::int64_t most = kLargestSize) const {
    const auto value = get<std::int64_t>(key, otherwise);
    expect(value >= 1 && value <= most, Fault::data, where(key), " is ", value,
           ", but must lie between 1 and ", most);
    return value;
  }

  double positive(const char* key, double otherwise) const {
    const auto value = get<double>(key, otherwise);
    expect(std::isfinite(value) && value > 0, Fault::data, where(key),
           " must be a positive number, found ", value);
    return value;
  }

  std::optional<std::int64_t> token(const char* key) const {
    if (!has(key)) return std::nullopt;
    return get<std::int64_t>(key, 0);
  }

  /// A number or a list of numbers.
  std::vector<std::int64_t> numbers(const char* key,
                                    const std::vector<std::int64_t>& otherwise) const {
    const auto* json = find(key);
    if (!json) return otherwise;
    if (!json->is_array()) return {cast<std::int64_t>(*json, key)};
    std::vector<std::int64_t> values;
    for (const auto& item : *json) values.push_back(cast<std::int64_t>(item, key));
    return values;
  }

  /// One of a few words.
  std::string word(const char* key, const std::string& otherwise,
                   const std::vector<std::string>& known) const {
    const auto value = get<std::string>(key, otherwise);
    std::string list;
    for (const auto& name : known) list += (list.empty() ? "" : ", ") + name;
    expect(std::find(known.begin(), known.end(), value) != known.end(), Fault::data, where(key),
           " is \"", value, "\"; this program has ", list);
    return value;
  }

 private:
  template <class T>
  T cast(const Json& json, const char* key) const {
    const bool is_number = std::is_same_v<T, double> && json.is_number();
    const bool is_right = is_number ||
                          (std::is_same_v<T, std::int64_t> && json.is_number_integer()) ||
                          (std::is_same_v<T, bool> && json.is_boolean()) ||
                          (std::is_same_v<T, std::string> && json.is_string());
    const char* wanted = std::is_same_v<T, double>         ? "a number"
                         : std::is_same_v<T, std::int64_t> ? "a whole number"
                         : std::is_same_v<T, bool>         ? "true or false"
                                                           : "a string";
    expect(is_right, Fault::data, where(key), ": expected ", wanted, ", found ",
           json.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80));
    return json.get<T>();
  }

  const Json& object_;
  std::string where_;
};

}  // namespace llava::model
