#include "llava/data/scenes_report.h"

#include "llava/base/files.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <sstream>

namespace llava::data {
namespace {

constexpr std::size_t kShown = 42;  // pictures on the sheet: six of each kind

std::vector<Json> read_lines(const std::string& path) {
  std::vector<Json> all;
  std::istringstream lines(read_file(path));
  std::size_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (!line.empty()) all.push_back(parse_json(line, path + ":" + std::to_string(number)));
  }
  return all;
}

const Json& field_of(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  expect(found != object.end(), Fault::data, where, ": a line has no \"", key, "\"");
  return *found;
}

std::string plain(std::string text) {
  const auto space = [](unsigned char c) { return std::isspace(c) != 0; };
  while (!text.empty() && (space(text.back()) || text.back() == '.')) text.pop_back();
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), space));
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return text;
}

struct Answered {
  std::string image, kind, question, expected, answer;
  bool right() const { return plain(answer) == plain(expected); }
};

std::vector<Answered> answered(const std::string& questions, const std::string& answers) {
  std::map<std::int64_t, std::string> texts;
  for (const auto& line : read_lines(answers))
    texts[field_of(line, "question_id", answers).get<std::int64_t>()] =
        field_of(line, "text", answers).get<std::string>();
  std::vector<Answered> all;
  for (const auto& line : read_lines(questions)) {
    const auto id = field_of(line, "question_id", questions).get<std::int64_t>();
    const auto text = texts.find(id);
    expect(text != texts.end(), Fault::data, answers, ": question ", id,
           " has no answer; run `llava run --input` again, it goes on where it stopped");
    all.push_back({line["image"], line["kind"], line["text"], line["answer"], text->second});
  }
  expect(!all.empty(), Fault::data, questions, ": there is no question");
  return all;
}

double share_right(const std::vector<Answered>& all) {
  const auto right = std::count_if(all.begin(), all.end(), [](const auto& a) { return a.right(); });
  return static_cast<double>(right) / static_cast<double>(all.size());
}

/// The last validation loss of a run.
double eval_loss(const std::string& run) {
  const auto path = run + "/metrics.jsonl";
  double loss = std::nan("");
  for (const auto& line : read_lines(path))
    if (line.value("kind", "") == "eval") loss = field_of(line, "loss", path).get<double>();
  expect(!std::isnan(loss), Fault::data, path, ": no validation loss; train with --eval_strategy");
  return loss;
}

std::int64_t peak_bytes(const std::string& run) {
  std::int64_t peak = 0;
  for (const auto& line : read_lines(run + "/metrics.jsonl"))
    if (line.value("kind", "") == "train")
      peak = std::max(peak, line.value("mem_peak", std::int64_t{0}));
  return peak;
}

std::string base64(const std::string& bytes) {
  constexpr char kLetters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    for (std::size_t j = 0; j < 3; ++j)
      three = (three << 8) | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (std::size_t j = 0; j < 4; ++j)
      text += i + j <= bytes.size() ? kLetters[(three >> (18 - 6 * j)) & 63] : '=';
  }
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string percent(double share) {
  char text[16];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

std::string picture(const std::string& world, const std::string& name) {
  const auto bytes = read_file(path_inside(world + "/images", name, "image"));
  const char* type = bytes.rfind("\x89PNG", 0) == 0 ? "png" : "jpeg";
  return std::string("<img src=\"data:image/") + type + ";base64," + base64(bytes) + "\">";
}

constexpr const char* kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>llava-cpp: the small world</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .9em; text-align: left; border-bottom: 1px solid #ddd }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 12px }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 8px; font-size: 13px }
.card img { width: 100%; image-rendering: auto; border-radius: 4px }
.right { border-left: 5px solid #2a9d4a } .wrong { border-left: 5px solid #d33 }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px }
svg { max-width: 100%; height: auto }
</style></head><body>
)";

void write_curves(std::ostream& page, const ScenesRun& run) {
  page << "<h2>Loss</h2><div class=\"curves\">";
  std::vector<std::string> runs = run.parents;
  for (const auto& other : {run.stage1, run.control, run.stage2}) runs.push_back(other);
  for (const auto& folder : runs) {
    const auto curve = folder + "/loss.svg";
    if (!std::filesystem::exists(curve)) continue;
    page << "<div><b>" << escaped(std::filesystem::path(folder).filename().string()) << "</b>"
         << read_file(curve) << "</div>";
  }
  page << "</div>";
}

void write_sheet(std::ostream& page, const ScenesRun& run, const std::vector<Answered>& all) {
  page
      << "<h2>Pictures it had never seen</h2><p>The first questions of the held-out set, right and "
         "wrong answers alike.</p><div class=\"sheet\">";
  for (std::size_t i = 0; i < std::min(kShown, all.size()); ++i) {
    const auto& item = all[i];
    page << "<div class=\"card " << (item.right() ? "right" : "wrong") << "\">"
         << picture(run.world, item.image) << "<br>" << escaped(item.question) << "<br><b>"
         << escaped(item.answer) << "</b>";
    if (!item.right()) page << " (expected " << escaped(item.expected) << ")";
    page << "</div>";
  }
  page << "</div>";
}

}  // namespace

Json scenes_report(const ScenesRun& run) {
  const auto all = answered(run.world + "/questions.jsonl", run.answers);
  const auto blank = answered(run.world + "/blank_questions.jsonl", run.blank_answers);
  std::map<std::string, std::vector<Answered>> kinds;
  for (const auto& item : all) kinds[item.kind].push_back(item);
  Json by_kind = Json::object();
  for (const auto& [kind, items] : kinds) by_kind[kind] = share_right(items);
  std::int64_t peak = 0;
  for (const auto& folder : {run.stage1, run.control, run.stage2})
    peak = std::max(peak, peak_bytes(folder));
  return {{"questions", all.size()},
          {"score", share_right(all)},
          {"blank_score", share_right(blank)},
          {"by_kind", by_kind},
          {"caption_loss", eval_loss(run.stage1)},
          {"shuffled_caption_loss", eval_loss(run.control)},
          {"minutes", read_json(run.minutes)},
          {"peak_memory_mib", peak / (1024 * 1024)},
          {"model", run.model}};
}

std::string scenes_page(const ScenesRun& run, const Json& report) {
  std::ostringstream page;
  page << kHead << "<h1>A small world, learned</h1><p>" << report["questions"]
       << " questions about pictures of scenes that no training file has: <b>"
       << percent(report["score"]) << "</b> answered exactly; with a gray picture instead "
       << percent(report["blank_score"]) << ".</p><table><tr><th>kind</th><th>right</th></tr>";
  for (const auto& [kind, share] : report["by_kind"].items())
    page << "<tr><td>" << escaped(kind) << "</td><td>" << percent(share) << "</td></tr>";
  page << "</table><p>Stage 1: loss on captions of held-out pictures " << report["caption_loss"]
       << "; of a control trained on the captions of other pictures "
       << report["shuffled_caption_loss"] << ".</p><p>Minutes: ";
  for (const auto& [phase, minutes] : report["minutes"].items())
    page << escaped(phase) << " " << minutes << " &nbsp; ";
  page << "peak memory " << report["peak_memory_mib"] << " MiB</p>";
  write_curves(page, run);
  write_sheet(page, run, answered(run.world + "/questions.jsonl", run.answers));
  page << "</body></html>\n";
  return page.str();
}

}  // namespace llava::data
