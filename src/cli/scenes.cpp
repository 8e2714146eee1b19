// llava data make-scenes and report-scenes: the small world that the demo learns, and what came of
// learning it.
#include "llava/data/scenes.h"
#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/data/scenes_report.h"
#include "scenes.h"

#include <cstdio>

namespace llava::cli {
namespace {

/// A part's own settings and the folder that results go to.
template <class Part>
struct WithOutput {
  Part part;
  std::string output_dir;

  template <class Field>
  void fields(Field& field) {
    field("output_dir", output_dir, "folder that the files are written to");
    part.fields(field);
  }
};

}  // namespace

int make_scenes(const std::vector<std::string>& words) {
  WithOutput<data::ScenesConfig> config;
  Args args("data make-scenes", "Makes a small world of pictures, captions and conversations.",
            words);
  args.add(config);
  if (!args.parse()) return 0;
  expect(!config.output_dir.empty(), Fault::usage,
         "llava data make-scenes: --output_dir is missing");
  make_folder(config.output_dir);
  data::make_scenes(config.output_dir, config.part);
  log::info("the small world is in ", config.output_dir);
  if (args.common().json)
    std::fputs(json_text({{"output_dir", config.output_dir}}).c_str(), stdout);
  return 0;
}

int report_scenes(const std::vector<std::string>& words) {
  WithOutput<data::ScenesRun> config;
  Args args("data report-scenes", "Scores a run on the small world and writes a page about it.",
            words);
  args.add(config);
  if (!args.parse()) return 0;
  expect(!config.output_dir.empty(), Fault::usage,
         "llava data report-scenes: --output_dir is missing");
  make_folder(config.output_dir);
  const auto report = data::scenes_report(config.part);
  write_file(config.output_dir + "/report.json", json_text(report));
  write_file(config.output_dir + "/report.html", data::scenes_page(config.part, report));
  if (args.common().json) {
    std::fputs(json_text(report).c_str(), stdout);
    return 0;
  }
  std::printf("score %.1f%% of %s questions about unseen pictures (%.1f%% when shown a gray one)\n",
              100 * report["score"].get<double>(), report["questions"].dump().c_str(),
              100 * report["blank_score"].get<double>());
  return 0;
}

}  // namespace llava::cli
