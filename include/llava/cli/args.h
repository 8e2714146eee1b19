// The command line: config fields -> options, so that a field is a flag, a JSON key and a help line
// at once. CLI11 parses. '-' and '_' are the same in an option's name.
// Layers of settings: built-in default < --config FILE < command line.
#pragma once

#include "llava/base/config.h"

#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace llava::cli {

/// Options that every verb has.
struct CommonConfig {
  std::string device = "auto";
  std::string dtype = "auto";
  std::int64_t threads = 0;
  std::int64_t seed = 42;
  bool quiet = false;
  bool verbose = false;
  bool json = false;

  template <class Field>
  void fields(Field& field) {
    field("device", device, "auto, cpu or cuda[:N]");
    field("dtype", dtype, "auto, float32, bfloat16 or float16");
    field("threads", threads, "CPU threads; 0: all cores");
    field("seed", seed, "seed of everything random");
    field("quiet", quiet, "warnings and errors only");
    field("verbose", verbose, "more log lines");
    field("json", json, "print one JSON object on stdout");
  }
};

/// The arguments of one verb. Give it the config structs, then call parse().
class Args {
 public:
  Args(std::string verb, std::string summary, std::vector<std::string> words);

  /// Makes an option of every field of `config`, which must outlive parse().
  template <class Config>
  void add(Config& config) {
    Registrar registrar{*this};
    config.fields(registrar);
  }

  /// Makes the next words without a dash the value of a field already added ("DIR" of inspect).
  void positional(const std::string& field, const std::string& shown);

  /// Adds a short or further name ("-m", "--model") to a field already added.
  void alias(const std::string& field, const std::string& name);

  /// Lets a field's value be left out, meaning `bare`; otherwise the next word must be one of
  /// `choices` to be taken as its value.
  void optional_value(const std::string& field, const std::string& bare,
                      const std::vector<std::string>& choices);

  /// Common options, --config and --print_config are added here; then the layers are applied.
  /// Returns false when --help or --print_config printed what was asked and the verb is done.
  /// Throws Error(usage) naming the option and the nearest known one.
  bool parse();

  const CommonConfig& common() const { return common_; }

  /// Whether the user gave this field, on the command line or in the config file.
  bool given(const std::string& field) const;

  /// All settings as they are now, in the order they were added.
  Json effective() const;

 private:
  /// One field: how to fill and show it, whatever its type.
  struct Option {
    std::string name, help;
    std::vector<std::string> aliases;
    bool is_list = false;              // may be given several times
    std::string bare;                  // value when given without one; "" when a value is needed
    std::vector<std::string> choices;  // words taken as the value of an option that may be bare
    std::function<void(const std::string& text)> parse;
    std::function<void(const Json& json, const std::string& where)> read;
    std::function<Json()> show;
    std::vector<std::string> texts;  // from the command line
    bool given = false;
  };

  struct Registrar {
    Args& args;
    template <class T>
    void operator()(const char* name, T& value, const char* help) {
      args.add_option(name, value, help);
    }
  };

  template <class T>
  void add_option(const char* name, T& value, const char* help) {
    Option option;
    option.name = name;
    option.help = help;
    if constexpr (std::is_same_v<T, bool>) {
      option.bare = "true";
      option.choices = {"true", "false", "True", "False", "1", "0", "yes", "no", "on", "off"};
    }
    option.is_list = std::is_same_v<T, std::vector<std::string>>;
    option.parse = [name, &value](const std::string& text) {
      parse_value(text, std::string("--") + name, value);
    };
    if constexpr (std::is_same_v<T, std::vector<std::string>>) {  // repeated, not comma-separated
      option.parse = [&value, fresh = true](const std::string& text) mutable {
        if (std::exchange(fresh, false)) value.clear();
        value.push_back(text);
      };
    }
    option.read = [&value](const Json& json, const std::string& where) {
      read_value(json, where, value);
    };
    option.show = [&value] {
      FieldWriter writer;
      writer("value", value, "");
      return writer.take()["value"];
    };
    options_.push_back(std::move(option));
  }

  Option& find(const std::string& field);
  const Option& find(const std::string& field) const;
  Option* named(const std::string& word);
  std::vector<std::string> names() const;
  std::vector<std::string> setting_names() const;
  std::vector<std::string> paired_words();
  bool read_words();
  void apply_file(const std::string& path);

  std::string verb_, summary_;
  std::vector<std::string> words_;
  std::vector<std::pair<std::string, std::string>> positionals_;  // field, shown
  std::vector<Option> options_;
  CommonConfig common_;
  std::string config_path_;
  bool print_config_ = false;
};

/// One verb of the program.
struct Command {
  std::string_view name, summary;
  int (*run)(const std::vector<std::string>& words);
};

int bench(const std::vector<std::string>& words);
int chat(const std::vector<std::string>& words);
int convert(const std::vector<std::string>& words);
int data(const std::vector<std::string>& words);
int doctor(const std::vector<std::string>& words);
int init(const std::vector<std::string>& words);
int inspect(const std::vector<std::string>& words);
int plan(const std::vector<std::string>& words);
int run(const std::vector<std::string>& words);
int train(const std::vector<std::string>& words);

}  // namespace llava::cli
