#include "llava/base/config.h"

#include "llava/base/files.h"

#include <charconv>
#include <cmath>
#include <unordered_set>

namespace llava {
namespace {

constexpr int kMaxDepth = 256;

/// Builds a Json while refusing repeated keys and deep nesting.
class CheckedBuilder : public nlohmann::detail::json_sax_dom_parser<Json> {
  using Base = nlohmann::detail::json_sax_dom_parser<Json>;

 public:
  explicit CheckedBuilder(Json& root) : Base(root, /*allow_exceptions=*/false) {}

  bool start_object(std::size_t count) {
    keys_.emplace_back();
    return enter() && Base::start_object(count);
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return Base::end_object();
  }
  bool start_array(std::size_t count) { return enter() && Base::start_array(count); }
  bool end_array() {
    --depth_;
    return Base::end_array();
  }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) {
      problem = "the key \"" + name + "\" appears twice in one object";
      return false;
    }
    return Base::key(name);
  }
  bool parse_error(std::size_t byte, const std::string& token,
                   const nlohmann::detail::exception& e) {
    position = byte;
    const std::string text = e.what();  // "[json.exception...] parse error at line..: reason"
    const auto reason = text.find(": ");
    problem = reason == std::string::npos ? text : text.substr(reason + 2);
    return Base::parse_error(byte, token, e);
  }

  std::string problem;
  std::size_t position = 0;  // byte, from 1; 0 when unknown

 private:
  bool enter() {
    if (++depth_ <= kMaxDepth) return true;
    problem = "nested deeper than " + std::to_string(kMaxDepth) + " levels";
    return false;
  }
  std::vector<std::unordered_set<std::string>> keys_;
  int depth_ = 0;
};

std::string line_and_column(std::string_view text, std::size_t byte) {
  const auto before = text.substr(0, std::min(byte ? byte - 1 : 0, text.size()));
  const auto lines = std::count(before.begin(), before.end(), '\n');
  const auto start = before.rfind('\n');
  const auto column = before.size() - (start == std::string_view::npos ? 0 : start + 1) + 1;
  return std::to_string(lines + 1) + ":" + std::to_string(column);
}

std::string normalized(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

/// Letters to insert, drop, replace or swap with a neighbour to turn a into b.
std::size_t edit_distance(const std::string& a, const std::string& b) {
  const std::size_t width = b.size() + 1;
  std::vector<std::size_t> table((a.size() + 1) * width);
  const auto at = [&](std::size_t i, std::size_t j) -> std::size_t& {
    return table[i * width + j];
  };
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        at(i, j) = i + j;
        continue;
      }
      at(i, j) =
          std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
    }
  }
  return table.back();
}

template <class T>
void parse_number(const std::string& text, const std::string& where, const char* kind, T& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  expect(error == std::errc() && stop == end, Fault::usage, where, ": expected ", kind,
         ", found \"", text, "\"");
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  Json root;
  CheckedBuilder builder(root);
  const bool ok = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!ok && builder.position) {
    fail(Fault::data, where, ":", line_and_column(text, builder.position),
         ": not valid JSON: ", builder.problem);
  }
  expect(ok, Fault::data, where, ": not valid JSON: ", builder.problem);
  return root;
}

Json read_json(const std::string& path) { return parse_json(read_file(path), path); }

std::string json_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& names) {
  const std::string wanted = normalized(name);
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, wanted.size() / 3) + 1;
  for (const auto& candidate : names) {
    const auto distance = edit_distance(wanted, normalized(candidate));
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string suggestion(const std::string& name, const std::vector<std::string>& names) {
  const auto nearest = nearest_name(name, names);
  return nearest.empty() ? "" : " (did you mean \"" + nearest + "\"?)";
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (begin <= text.size() && !text.empty()) {
    const auto comma = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return parts;
}

void parse_value(const std::string& text, const std::string& where, bool& value) {
  std::string word = text;
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  if (word == "true" || word == "1" || word == "yes" || word == "on") {
    value = true;
  } else if (word == "false" || word == "0" || word == "no" || word == "off") {
    value = false;
  } else {
    fail(Fault::usage, where, ": expected true or false, found \"", text, "\"");
  }
}

void parse_value(const std::string& text, const std::string& where, std::int64_t& value) {
  parse_number(text, where, "a whole number", value);
}

void parse_value(const std::string& text, const std::string& where, double& value) {
  parse_number(text, where, "a number", value);
  expect(std::isfinite(value), Fault::usage, where, ": expected a finite number, found ", text);
}

void parse_value(const std::string& text, const std::string&, std::string& value) { value = text; }

void read_value(const Json& json, const std::string& where, bool& value) {
  expect(json.is_boolean(), Fault::usage, where, ": expected true or false, found ", json.dump());
  value = json.get<bool>();
}

void read_value(const Json& json, const std::string& where, std::int64_t& value) {
  expect(json.is_number_integer(), Fault::usage, where, ": expected a whole number, found ",
         json.dump());
  expect(!json.is_number_unsigned() || json.get<std::uint64_t>() <= INT64_MAX, Fault::usage, where,
         ": ", json.dump(), " is too large");
  value = json.get<std::int64_t>();
}

void read_value(const Json& json, const std::string& where, double& value) {
  expect(json.is_number(), Fault::usage, where, ": expected a number, found ", json.dump());
  value = json.get<double>();
}

void read_value(const Json& json, const std::string& where, std::string& value) {
  expect(json.is_string(), Fault::usage, where, ": expected text, found ", json.dump());
  value = json.get<std::string>();
}

FieldReader::FieldReader(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  expect(object.is_object(), Fault::usage, where_, ": expected an object of settings");
}

void FieldReader::reject_unknown_keys() const {
  for (const auto& [key, value] : object_.items()) {
    const bool known = std::find(known_.begin(), known_.end(), key) != known_.end();
    expect(known, Fault::usage, where_, ": unknown setting \"", key, "\"", suggestion(key, known_));
  }
}

}  // namespace llava
