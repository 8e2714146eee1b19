// llava data check, stats, show: what a training set holds, what of it is broken, what is learned.
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/data/report.h"
#include "llava/model/chat_template.h"
#include "scenes.h"

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <thread>

namespace llava::cli {
namespace {

struct DataConfig {
  std::string action, data_path, image_folder, video_folder, model, vision_tower, conv_mode,
      fix_list;
  std::int64_t index = 0, model_max_length = 0, video_frames = 0;
  media::ImageFlags image;
  bool decode = false;

  template <class Field>
  void fields(Field& field) {
    field("action", action,
          "check, stats or show; make-scenes and report-scenes have options of their own");
    field("data_path", data_path, "training set: LLaVA JSON, JSON lines, mixture file, or several");
    field("image_folder", image_folder, "folder that the samples' image names start from");
    field("video_folder", video_folder, "the same for videos; default: image_folder");
    field("model", model, "model folder: its tokenizer, preprocessing and template count tokens");
    field("vision_tower", vision_tower,
          "folder of the vision tower, where the model names another");
    field("conv_mode", conv_mode, "chat template; default: the model's own");
    field("index", index, "show: number of the sample, from 0");
    field("fix_list", fix_list, "check: write the good samples to this file");
    field("decode", decode, "check: decode every picture whole, not only its header");
    field("model_max_length", model_max_length, "check: longest sample, tokens; 0: the model's");
    field("video_frames", video_frames, "at most this many frames of a video; 0: all there are");
    image.fields(field);
  }
};

/// How the model sees samples; nothing without a model.
std::unique_ptr<input::Encoder> open_encoder(const DataConfig& config, std::int64_t& max_tokens) {
  if (config.model.empty()) {
    expect(config.conv_mode.empty(), Fault::usage, "--conv_mode needs a model (-m DIR)");
    return nullptr;
  }
  const auto model = model::read_llava_config(config.model, config.vision_tower);
  const auto name = model::choose_template(model, config.model, config.conv_mode);
  if (max_tokens == 0)
    max_tokens = model.max_length > 0 ? model.max_length : model.text.max_position_embeddings;
  return std::make_unique<input::Encoder>(
      text::Tokenizer::load(config.model), text::find_template(name),
      input::EncoderConfig{
          .tiling = model.tiling, .merge = model.merge, .image_start_end = model.image_start_end});
}

std::string one_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

int run_check(const DataConfig& config, const data::Records& records, const input::Encoder* encoder,
              const data::ReportConfig& report, bool json) {
  std::unique_ptr<data::SampleWriter> good;
  if (!config.fix_list.empty()) good = std::make_unique<data::SampleWriter>(config.fix_list);
  std::int64_t done = 0, bad = 0;
  const auto progress = [&] {
    if (++done % 10'000 == 0)
      log::status("checked " + std::to_string(done) + " of " + std::to_string(records.size()));
  };
  // Bad samples are printed as they are found, so that memory does not grow with their number.
  if (json) std::fputs("{\"bad\": [", stdout);
  const auto result = data::check(
      records, encoder, report,
      [&](const data::Problem& problem) {
        progress();
        ++bad;
        const Json entry{{"id", problem.id},
                         {"line", problem.line},
                         {"why", problem.why},
                         {"file", problem.file}};
        const std::string line =
            json ? (bad > 1 ? ",\n  " : "\n  ") + one_line(entry) : problem.why + "\n";
        std::fputs(line.c_str(), stdout);
      },
      [&](std::int64_t index) {
        progress();
        if (good) good->add(records.json(index));
      });
  if (good) good->commit();
  log::status("");
  if (json) {
    std::printf("%s], \"samples\": %lld, \"good\": %lld}\n", bad > 0 ? "\n" : "",
                static_cast<long long>(result.samples), static_cast<long long>(result.good));
  } else {
    std::printf("%lld of %lld samples are good\n", static_cast<long long>(result.good),
                static_cast<long long>(result.samples));
  }
  return bad > 0 ? static_cast<int>(Fault::data) : 0;
}

/// One line a number; nested ones are indented.
void print_tree(const Json& tree, int depth) {
  for (const auto& [key, value] : tree.items()) {
    std::printf("%*s%-*s", depth * 2, "", 20 - depth * 2, key.c_str());
    if (value.is_object()) {
      std::puts("");
      print_tree(value, depth + 1);
    } else {
      std::printf(" %s\n",
                  value.is_string() ? value.get<std::string>().c_str() : one_line(value).c_str());
    }
  }
}

int run_stats(const data::Records& records, const input::Encoder* encoder,
              const data::ReportConfig& report, bool json) {
  const auto stats = data::stats(records, encoder, report);
  if (json) {
    std::fputs(json_text(stats).c_str(), stdout);
  } else {
    print_tree(stats, 0);
  }
  return 0;
}

int run_show(const DataConfig& config, const data::Records& records, const input::Encoder& encoder,
             const data::ReportConfig& report, bool json) {
  const auto shown = data::show(records, config.index, encoder, report);
  const bool color = ::isatty(STDOUT_FILENO);
  const std::string text = json ? one_line(shown) + "\n" : data::show_text(shown, encoder, color);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace

int data(const std::vector<std::string>& words) {
  if (!words.empty() && words[0] == "make-scenes")
    return make_scenes({words.begin() + 1, words.end()});
  if (!words.empty() && words[0] == "report-scenes")
    return report_scenes({words.begin() + 1, words.end()});
  DataConfig config;
  Args args("data", "What a training set holds, what is broken, which tokens are learned.", words);
  args.add(config);
  args.positional("action", "ACTION");
  args.alias("model", "-m");
  args.alias("index", "-i");
  if (!args.parse()) return 0;
  const std::vector<std::string> actions{"check", "stats", "show", "make-scenes", "report-scenes"};
  expect(std::find(actions.begin(), actions.end(), config.action) != actions.end(), Fault::usage,
         "llava data: expected check, stats, show, make-scenes or report-scenes, found \"",
         config.action, "\"", suggestion(config.action, actions));
  expect(!config.data_path.empty(), Fault::usage, "llava data ", config.action,
         ": --data_path FILE is missing");
  expect(config.action != "show" || !config.model.empty(), Fault::usage,
         "llava data show needs a model (-m DIR) to tokenize with");

  data::ReportConfig report;
  report.media = {.image_folder = config.image_folder,
                  .video_folder = config.video_folder,
                  .image = config.image.options(),
                  .video_frames = config.video_frames};
  report.decode = config.decode;
  report.max_tokens = config.model_max_length;
  report.threads = args.common().threads > 0
                       ? args.common().threads
                       : std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  const auto encoder = open_encoder(config, report.max_tokens);
  const data::Records records(config.data_path, static_cast<std::uint64_t>(args.common().seed));
  const bool json = args.common().json;
  if (config.action == "check") return run_check(config, records, encoder.get(), report, json);
  if (config.action == "stats") return run_stats(records, encoder.get(), report, json);
  return run_show(config, records, *encoder, report, json);
}

}  // namespace llava::cli
