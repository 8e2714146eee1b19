// llava inspect: what a model folder is.
#include "llava/cli/args.h"
#include "llava/model/inspection.h"

#include <cstdio>

namespace llava::cli {
namespace {

struct InspectConfig {
  std::string model, vision_tower;

  template <class Field>
  void fields(Field& field) {
    field("model", model, "the folder to look at");
    field("vision_tower", vision_tower, "folder of the vision tower, where the config names none");
  }
};

void print_names(const char* what, const Json& names) {
  constexpr std::size_t kShown = 10;
  if (names.empty()) return;
  std::printf("%s (%zu):\n", what, names.size());
  for (std::size_t i = 0; i < names.size() && i < kShown; ++i)
    std::printf("  %s\n", names[i].get<std::string>().c_str());
  if (names.size() > kShown)
    std::printf("  ... %zu more (--json lists all)\n", names.size() - kShown);
}

}  // namespace

int inspect(const std::vector<std::string>& words) {
  InspectConfig config;
  Args args("inspect", "tell what a model folder is", words);
  args.add(config);
  args.alias("model", "-m");
  args.positional("model", "DIR");
  if (!args.parse()) return 0;
  expect(!config.model.empty(), Fault::usage, "llava inspect: name a folder: llava inspect DIR");
  const auto report = model::inspect(config.model, config.vision_tower);
  if (args.common().json) {
    std::fputs(json_text(report).c_str(), stdout);
    return 0;
  }
  for (const char* key : {"family", "layout", "template", "dtype"})
    std::printf("%-12s %s\n", key, report[key].get<std::string>().c_str());
  for (const auto& [part, sizes] : report["parts"].items())
    std::printf("%-12s %s\n", part.c_str(), sizes.dump().c_str());
  std::printf("%-12s %lld\n", "parameters",
              static_cast<long long>(report["num_parameters"].get<std::int64_t>()));
  for (const char* what : {"missing", "unexpected", "misshapen"}) print_names(what, report[what]);
  return 0;
}

}  // namespace llava::cli
