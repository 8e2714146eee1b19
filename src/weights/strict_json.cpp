#include "strict_json.h"

#include "llava/base/check.h"
#include "llava/weights/state_dict.h"

#include <nlohmann/json.hpp>

#include <unordered_set>

namespace llava::weights {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 4;
constexpr std::size_t kMaxKeys = 65'537;
constexpr std::size_t kMaxString = 64 << 10;

/// Turns the events of nlohmann's parser into JsonValues.
class Walker : public nlohmann::json_sax<json> {
 public:
  Walker(const std::string& where, const std::function<void(const JsonValue&)>& visit)
      : where_(where), visit_(visit) {}

  bool null() override { return value(JsonValue::Kind::null); }
  bool boolean(bool) override { return value(JsonValue::Kind::other); }
  // The parser calls this one for numbers with a minus sign, -0 among them.
  bool number_integer(number_integer_t) override { return value(JsonValue::Kind::other); }
  bool number_unsigned(number_unsigned_t number) override {
    return value(JsonValue::Kind::number, number);
  }
  bool number_float(number_float_t, const string_t&) override {
    return value(JsonValue::Kind::other);
  }
  bool string(string_t& text) override { return value(JsonValue::Kind::string, 0, text); }
  bool binary(binary_t&) override { return value(JsonValue::Kind::other); }

  bool start_object(std::size_t) override {
    value(JsonValue::Kind::object);
    open(false);
    keys_.emplace_back();
    seen_.emplace_back();
    return true;
  }
  bool key(string_t& name) override {
    expect(seen_.back().size() < kMaxKeys, Fault::data, where_, ": more than ", kMaxKeys,
           " keys in one object");
    if (!seen_.back().insert(name).second)
      fail(Fault::data, where_, ": the key ", shown(name), " appears twice");
    keys_.back() = name;
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    seen_.pop_back();
    in_array_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override {
    value(JsonValue::Kind::array);
    open(true);
    return true;
  }
  bool end_array() override {
    in_array_.pop_back();
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&, const json::exception&) override {
    fail(Fault::data, where_, ": not valid JSON at byte ", byte, "; is the file damaged?");
  }

 private:
  bool value(JsonValue::Kind kind, std::uint64_t number = 0, std::string_view text = {}) {
    visit_({kind, keys_, !in_array_.empty() && in_array_.back(), number, text});
    return true;
  }
  void open(bool array) {
    expect(in_array_.size() < kMaxDepth, Fault::data, where_, ": nested deeper than ", kMaxDepth,
           " levels");
    in_array_.push_back(array);
  }

  const std::string& where_;
  const std::function<void(const JsonValue&)>& visit_;
  std::vector<std::string> keys_;
  std::vector<bool> in_array_;                         // per level: array or object
  std::vector<std::unordered_set<std::string>> seen_;  // per object: its keys so far
};

/// The parser copies each token three times, so an overlong one is refused before it starts.
bool has_long_token(std::string_view text) {
  std::size_t begin = 0;
  while (text.size() - begin > kMaxString) {
    const auto quote = text.find('"', begin);
    if (quote == text.npos || quote - begin > kMaxString) return true;
    begin = quote + 1;
  }
  return false;
}

}  // namespace

void walk_json(std::string_view text, const std::string& where,
               const std::function<void(const JsonValue&)>& visit) {
  const auto end = text.find_last_not_of(" \t\r\n");
  text = text.substr(0, end == text.npos ? 0 : end + 1);
  // The parser takes NUL for the end of the text and skips a byte-order mark.
  expect(!text.empty() && text.find('\0') == text.npos && !text.starts_with("\xef\xbb\xbf"),
         Fault::data, where, ": not valid JSON; is the file damaged?");
  expect(!has_long_token(text), Fault::data, where, ": a string longer than ", kMaxString,
         " bytes");
  Walker walker(where, visit);
  json::sax_parse(text.begin(), text.end(), &walker);
}

bool is_utf8(std::string_view text) {
  try {
    json(std::string(text)).dump();
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

}  // namespace llava::weights
