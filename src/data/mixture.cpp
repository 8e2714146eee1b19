#include "mixture.h"

#include "llava/base/config.h"
#include "llava/base/files.h"
#include "random.h"

#include <charconv>
#include <filesystem>
#include <fstream>

namespace llava::data {
namespace {

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

/// Splits at commas that stand outside braces.
std::vector<std::string> split_paths(const std::string& data_path) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : data_path) {
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (c == ',' && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// "base{a,b}.json" -> basea.json, baseb.json.
std::vector<std::string> expand_braces(const std::string& path) {
  const auto open = path.find('{'), close = path.rfind('}');
  if (open == path.npos || close == path.npos || close < open) return {path};
  std::vector<std::string> paths;
  for (const auto& middle : split_list(path.substr(open + 1, close - open - 1)))
    paths.push_back(path.substr(0, open) + trimmed(middle) + path.substr(close + 1));
  return paths;
}

/// A path of a mixture file: as it stands, or else beside the mixture file.
std::string beside(const std::string& mixture, const std::string& path) {
  const auto sibling = std::filesystem::path(mixture).parent_path() / path;
  std::error_code ignored;
  const bool as_given = std::filesystem::exists(path, ignored);
  return !as_given && std::filesystem::exists(sibling, ignored) ? sibling.string() : path;
}

void set_field(Source& source, const std::string& key, const std::string& value,
               const std::string& where) {
  const bool known = key == "json_path" || key == "sampling_strategy";
  expect(known, Fault::data, where, ": unknown key \"", key, "\"",
         suggestion(key, {"json_path", "sampling_strategy"}),
         "; a dataset has json_path and sampling_strategy");
  (key == "json_path" ? source.path : source.strategy) = value;
}

/// A line of YAML without its comment: " #" outside quotes begins one.
std::string without_comment(const std::string& line) {
  char quote = 0;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '#' && (i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t')) {
      return line.substr(0, i);
    }
  }
  return line;
}

std::string unquoted(const std::string& text) {
  const bool quoted =
      text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0];
  return quoted ? text.substr(1, text.size() - 2) : text;
}

/// The published shape and nothing else of YAML:
///   datasets:
///     - json_path: a.json
///       sampling_strategy: "first:10%"
std::vector<Source> read_yaml(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<Source> sources;
  std::string raw;
  bool inside = false;
  for (int number = 1; std::getline(text, raw); ++number) {
    const std::string where = path + ":" + std::to_string(number);
    std::string line = trimmed(without_comment(raw));
    if (line.empty() || line == "---") continue;
    if (!inside) {
      expect(line == "datasets:", Fault::data, where, ": expected \"datasets:\", found \"", line,
             "\"");
      inside = true;
      continue;
    }
    if (line[0] == '-') {
      sources.push_back({.path = "", .where = where});
      line = trimmed(line.substr(1));
      if (line.empty()) continue;
    }
    const auto colon = line.find(':');
    expect(!sources.empty() && colon != line.npos, Fault::data, where,
           ": expected \"- json_path: FILE\" or \"sampling_strategy: WORD\", found \"", line, "\"");
    set_field(sources.back(), trimmed(line.substr(0, colon)),
              unquoted(trimmed(line.substr(colon + 1))), where);
  }
  return sources;
}

std::vector<Source> read_datasets(const Json& mixture, const std::string& path) {
  std::vector<Source> sources;
  const auto& datasets = mixture["datasets"];
  expect(datasets.is_array(), Fault::data, path, ": \"datasets\" is not a list");
  for (const auto& dataset : datasets) {
    const std::string where = path + ": dataset " + std::to_string(sources.size() + 1);
    expect(dataset.is_object(), Fault::data, where, ": expected an object, found ", dataset.dump());
    auto& source = sources.emplace_back(Source{.path = "", .where = where});
    for (const auto& [key, value] : dataset.items()) {
      expect(value.is_string(), Fault::data, where, ": \"", key, "\" is not text");
      set_field(source, key, value.get<std::string>(), where);
    }
  }
  return sources;
}

/// Whether a file is a mixture in JSON: an object with "datasets", where a set is a list or lines.
bool is_json_mixture(const std::string& path, Json& mixture) {
  constexpr std::uintmax_t kMaxBytes = 1 << 20;
  std::error_code missing;
  const auto size = std::filesystem::file_size(path, missing);
  if (missing || size > kMaxBytes || !std::filesystem::is_regular_file(path)) return false;
  const std::string text = read_file(path);
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos || text[first] != '{' || text.find("\"datasets\"") == text.npos)
    return false;
  if (!Json::accept(text)) return false;
  mixture = parse_json(text, path);
  return mixture.contains("datasets");
}

}  // namespace

std::vector<Source> list_sources(const std::string& data_path) {
  std::vector<Source> sources;
  for (const auto& part : split_paths(data_path)) {
    for (const auto& path : expand_braces(trimmed(part))) {
      expect(!path.empty(), Fault::usage, "--data_path: there is an empty name in \"", data_path,
             "\"");
      Json mixture;
      std::vector<Source> named;
      const bool yaml = ends_with(path, ".yaml") || ends_with(path, ".yml");
      if (yaml) {
        named = read_yaml(path);
      } else if (is_json_mixture(path, mixture)) {
        named = read_datasets(mixture, path);
      } else {
        sources.push_back({.path = path, .where = path});
        continue;
      }
      expect(!named.empty(), Fault::data, path, ": names no datasets");
      for (auto& source : named) {
        expect(!source.path.empty(), Fault::data, source.where, ": the dataset has no json_path");
        source.path = beside(path, source.path);
        sources.push_back(std::move(source));
      }
    }
  }
  return sources;
}

std::vector<std::int64_t> chosen(const std::string& strategy, std::int64_t count,
                                 std::uint64_t seed, const std::string& where) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  if (strategy == "all") return all;

  const auto colon = std::min(strategy.find(':'), strategy.size());
  const std::string word = strategy.substr(0, colon);
  const bool percent = ends_with(strategy, "%");
  std::int64_t amount = -1;
  if (colon < strategy.size()) {
    const char* end = strategy.data() + strategy.size() - percent;
    const auto [stop, error] = std::from_chars(strategy.data() + colon + 1, end, amount);
    if (error != std::errc() || stop != end) amount = -1;
  }
  const bool known = word == "first" || word == "end" || word == "random";
  expect(known && amount >= 0 && amount <= INT64_MAX / 100, Fault::data, where,
         ": unknown sampling_strategy \"", strategy,
         "\"; expected all, first:N, end:N or random:N, N a count or a percentage like 12%");
  if (percent) amount = (amount * count + 99) / 100;
  amount = std::min(amount, count);
  if (word == "end") return {all.end() - amount, all.end()};
  if (word == "random") all = Random(seed).permutation(all.size());
  all.resize(static_cast<std::size_t>(amount));
  return all;
}

}  // namespace llava::data
