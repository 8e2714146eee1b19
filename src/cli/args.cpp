#include "llava/cli/args.h"

#include "llava/base/log.h"

#include <CLI/CLI.hpp>

#include <cstdio>

namespace llava::cli {
namespace {

/// An option's word with '-' in its name written as '_': "--top-p=0.9" -> "--top_p=0.9".
std::string normalized(std::string word) {
  if (word.rfind("--", 0) != 0) return word;
  const auto end = std::min(word.find('='), word.size());
  std::replace(word.begin() + 2, word.begin() + static_cast<std::ptrdiff_t>(end), '-', '_');
  return word;
}

bool looks_like_option(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && !std::isdigit(static_cast<unsigned char>(word[1])) &&
         word[1] != '.';
}

}  // namespace

Args::Args(std::string verb, std::string summary, std::vector<std::string> words)
    : verb_(std::move(verb)), summary_(std::move(summary)), words_(std::move(words)) {}

Args::Option& Args::find(const std::string& field) {
  for (auto& option : options_)
    if (option.name == field) return option;
  throw std::logic_error("no field " + field);
}

const Args::Option& Args::find(const std::string& field) const {
  return const_cast<Args*>(this)->find(field);
}

void Args::positional(const std::string& field, const std::string& shown) {
  find(field);
  positionals_.emplace_back(field, shown);
}

void Args::alias(const std::string& field, const std::string& name) {
  find(field).aliases.push_back(name);
}

void Args::optional_value(const std::string& field, const std::string& bare,
                          const std::vector<std::string>& choices) {
  auto& option = find(field);
  option.bare = bare;
  option.choices = choices;
}

bool Args::given(const std::string& field) const { return find(field).given; }

Json Args::effective() const {
  Json settings = Json::object();
  for (const auto& option : options_)
    if (option.name != "config" && option.name != "print_config")
      settings[option.name] = option.show();
  return settings;
}

std::vector<std::string> Args::names() const {
  std::vector<std::string> names{"--help"};
  for (const auto& option : options_) {
    names.push_back("--" + option.name);
    names.insert(names.end(), option.aliases.begin(), option.aliases.end());
  }
  return names;
}

/// Names as they stand in a file of settings: without dashes in front, and no single letters.
std::vector<std::string> Args::setting_names() const {
  std::vector<std::string> settings;
  for (const auto& name : names())
    if (name.rfind("--", 0) == 0 && name != "--help") settings.push_back(name.substr(2));
  return settings;
}

Args::Option* Args::named(const std::string& word) {
  for (auto& option : options_) {
    if (word == "--" + option.name) return &option;
    for (const auto& alias : option.aliases)
      if (word == normalized(alias)) return &option;
  }
  return nullptr;
}

/// The words as pairs "--name", "=value", so that a value may begin with a dash and a flag never
/// swallows the word after it. The '=' in front keeps CLI11 from splitting "[a,b]" into a list.
std::vector<std::string> Args::paired_words() {
  std::vector<std::string> pairs;
  const auto pair = [&](const std::string& field, const std::string& value) {
    pairs.push_back("--" + field);
    pairs.push_back("=" + value);
  };
  std::size_t next_positional = 0;
  for (std::size_t i = 0; i < words_.size(); ++i) {
    const std::string word = normalized(words_[i]);
    if (word == "--help" || word == "-h") return {"--help"};
    if (!looks_like_option(word)) {
      expect(next_positional < positionals_.size(), Fault::usage, "llava ", verb_,
             ": does not take the argument \"", word, "\"; options begin with --");
      pair(positionals_[next_positional++].first, words_[i]);
      continue;
    }
    const auto equals = word.find('=');
    const Option* option = named(word.substr(0, equals));
    expect(option != nullptr, Fault::usage, "llava ", verb_, ": unknown option ",
           words_[i].substr(0, words_[i].find('=')), suggestion(word.substr(0, equals), names()),
           "; llava ", verb_, " --help lists them");
    const auto& choices = option->choices;
    const bool next_is_value = i + 1 < words_.size() &&
                               (option->bare.empty() || std::find(choices.begin(), choices.end(),
                                                                  words_[i + 1]) != choices.end());
    if (equals != std::string::npos) {
      pair(option->name, word.substr(equals + 1));
    } else if (next_is_value) {
      pair(option->name, words_[++i]);
    } else {
      expect(!option->bare.empty(), Fault::usage, "llava ", verb_, ": ", words_[i],
             " needs a value (", option->help, ")");
      pair(option->name, option->bare);
    }
  }
  return pairs;
}

/// Lets CLI11 collect the options' texts. Returns false after printing the help.
bool Args::read_words() {
  CLI::App app(summary_, "llava " + verb_);
  app.set_help_flag("-h,--help", "print this and exit");
  app.get_formatter()->column_width(36);
  for (auto& option : options_) {
    std::string flags = "--" + option.name;
    for (const auto& alias : option.aliases) flags = alias + "," + flags;
    for (const auto& [field, shown] : positionals_)
      if (field == option.name) flags += "," + shown;
    auto* cli = app.add_option_function<std::vector<std::string>>(
        flags, [&option](const std::vector<std::string>& texts) { option.texts = texts; },
        option.help);
    const Json value = option.show();
    cli->default_str(value.is_string() ? value.get<std::string>() : value.dump());
    cli->type_name("")->expected(1)->allow_extra_args(false);
    cli->multi_option_policy(option.is_list ? CLI::MultiOptionPolicy::TakeAll
                                            : CLI::MultiOptionPolicy::TakeLast);
  }
  auto pairs = paired_words();
  std::reverse(pairs.begin(), pairs.end());  // CLI11 takes its words from the back
  try {
    app.parse(std::move(pairs));
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return false;
  } catch (const CLI::ParseError& error) {
    fail(Fault::usage, "llava ", verb_, ": ", error.what());
  }
  for (auto& option : options_) {
    for (auto& text : option.texts) text.erase(0, 1);
    option.given = !option.texts.empty();
  }
  return true;
}

void Args::apply_file(const std::string& path) {
  const Json file = read_json(path);
  expect(file.is_object(), Fault::usage, path, ": expected an object of settings");
  for (const auto& [key, value] : file.items()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '-', '_');
    Option* option = named("--" + name);
    expect(option != nullptr, Fault::usage, path, ": unknown setting \"", key, "\"",
           suggestion(name, setting_names()), "; llava ", verb_, " --help lists them");
    option->read(value, path + ": \"" + key + "\"");
    option->given = true;
  }
}

bool Args::parse() {
  add(common_);
  add_option("config", config_path_, "JSON file of settings; the command line overrides it");
  add_option("print_config", print_config_, "print the effective settings as JSON and exit");
  alias("verbose", "-v");
  alias("seed", "-s");
  if (!read_words()) return false;
  const auto& config = find("config");
  if (config.given) apply_file(config.texts.back());
  for (auto& option : options_)
    for (const auto& text : option.texts) option.parse(text);
  if (common_.verbose) log::set_level(log::Level::debug);
  if (common_.quiet) log::set_level(log::Level::warn);
  if (!print_config_) return true;
  std::fputs(json_text(effective()).c_str(), stdout);
  return false;
}

}  // namespace llava::cli
