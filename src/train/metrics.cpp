#include "llava/train/metrics.h"

#include "event_file.h"
#include "llava/base/files.h"
#include "llava/base/log.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace llava::train {
namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

/// A bar of ten cells, filled by eighths, as tqdm draws it.
std::string bar_cells(double share) {
  constexpr const char* parts[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::clamp(share, 0.0, 1.0) * 80);
  std::string cells;
  for (int cell = 0; cell < 10; ++cell) {
    const int fill = std::clamp(eighths - 8 * cell, 0, 8);
    cells += fill == 8 ? "█" : parts[fill];
  }
  return cells;
}

/// What one logged step says after the bar, and all of it on a plain line.
std::string figures(const StepMetrics& m) {
  std::string text = (std::isnan(m.loss) ? "loss - " : format("loss %.4g ", m.loss)) +
                     format("lr %.3g gnorm %.3g tok/s ", m.learning_rate, m.grad_norm) +
                     short_count(m.tokens_per_second);
  if (m.mfu) text += format(" mfu %.0f%%", 100 * *m.mfu);
  const double used = static_cast<double>(m.mem_peak) / 1e9;
  text += m.mem_total > 0 ? format(" mem %.0f/%.0fG", used, static_cast<double>(m.mem_total) / 1e9)
                          : format(" mem %.1fG", used);
  return text + format(" data %.0f%%", m.step_time > 0 ? 100 * m.data_time / m.step_time : 0.0);
}

}  // namespace

void check(const MetricsConfig& config) {
  expect(config.logging_steps > 0, Fault::usage, "--logging_steps: ", config.logging_steps,
         " is not a number of steps; take 1 or more");
  expect(config.report_to == "tensorboard" || config.report_to == "none", Fault::usage,
         "--report_to: \"", config.report_to,
         "\" is not known; take tensorboard or none (metrics.jsonl is always written)");
}

std::string short_count(double value) {
  constexpr const char* units[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  for (; value >= 999.5 && unit < 4; ++unit) value /= 1000;
  return format(unit == 0 ? "%.0f%s" : "%.3g%s", value, units[unit]);
}

std::string clock_text(double seconds) {
  const auto whole = static_cast<long long>(std::max(0.0, seconds));
  if (whole < 3600) return format("%02lld:%02lld", whole / 60, whole % 60);
  return format("%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string bar_text(const std::string& name, const StepMetrics& metrics, std::int64_t total_steps,
                     std::int64_t first_step, double elapsed) {
  const double share = static_cast<double>(metrics.step) /
                       static_cast<double>(std::max<std::int64_t>(1, total_steps));
  const auto done = std::max<std::int64_t>(1, metrics.step - first_step);
  const double pace = elapsed / static_cast<double>(done);
  const double left =
      pace * static_cast<double>(std::max<std::int64_t>(0, total_steps - metrics.step));
  return name + format(" %3.0f%%|", std::floor(100 * share)) + bar_cells(share) +
         format("| %lld/%lld [", static_cast<long long>(metrics.step),
                static_cast<long long>(total_steps)) +
         clock_text(elapsed) + "<" + clock_text(left) +
         (pace >= 1 || pace == 0 ? format(", %.2fs/it] ", pace)
                                 : format(", %.2fit/s] ", 1 / pace)) +
         figures(metrics);
}

std::vector<Json> read_metrics(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<Json> lines;
  std::size_t begin = 0;
  for (std::size_t number = 1; begin < text.size(); ++number) {
    const auto end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string where = path + ":" + std::to_string(number);
    lines.push_back(parse_json(std::string_view(text).substr(begin, end - begin), where));
    expect(lines.back().is_object() && lines.back().value("step", Json()).is_number_integer(),
           Fault::data, where, ": is not a line of metrics; move the file away");
    begin = end + 1;
  }
  return lines;
}

std::string loss_svg(const std::vector<Json>& lines) {
  struct Curve {
    const char *kind, *color;
    std::vector<std::pair<double, double>> points;
  };
  Curve curves[] = {{"train", "#1f77b4", {}}, {"eval", "#d62728", {}}};
  double last_step = 1, low = INFINITY, high = -INFINITY;
  for (const auto& line : lines) {
    for (auto& curve : curves) {
      const auto loss = line.find("loss");
      if (line.value("kind", "") != curve.kind || loss == line.end() || !loss->is_number())
        continue;
      curve.points.emplace_back(line["step"].get<double>(), loss->get<double>());
      last_step = std::max(last_step, curve.points.back().first);
      low = std::min(low, curve.points.back().second);
      high = std::max(high, curve.points.back().second);
    }
  }
  if (low > high) return "";
  if (high - low < 1e-9) high = low + 1;

  constexpr double left = 60, top = 20, width = 640, height = 320;
  const auto x = [&](double step) { return left + width * step / last_step; };
  const auto y = [&](double loss) { return top + height * (high - loss) / (high - low); };
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
      "fill=\"white\"/>\n",
      left + width + 20, top + height + 50);
  for (int tick = 0; tick <= 4; ++tick) {
    const double loss = low + (high - low) * tick / 4, step = last_step * tick / 4;
    svg += format("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", left,
                  left + width, y(loss), y(loss));
    svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>\n", left - 6,
                  y(loss) + 4, loss);
    svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n", x(step),
                  top + height + 18, step);
  }
  svg += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">step</text>\n",
                left + width / 2, top + height + 38);
  double legend = left + width - 60;
  for (const auto& curve : curves) {
    if (curve.points.empty()) continue;
    svg += format("<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s loss</text>\n", legend, top + 14,
                  curve.color, curve.kind);
    legend -= 80;
    svg +=
        format("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", curve.color);
    // A picture has no use for more points than pixels.
    const auto stride = curve.points.size() / 2000 + 1;
    for (std::size_t i = 0; i < curve.points.size(); i += stride)
      svg += format("%.1f,%.1f ", x(curve.points[i].first), y(curve.points[i].second));
    svg += "\"/>\n";
  }
  return svg + "</svg>\n";
}

struct Metrics::Files {
  std::string path;
  std::ofstream lines;
  std::optional<EventFile> events;
};

Metrics::Metrics(std::string folder, const MetricsConfig& config, std::string name,
                 std::int64_t resumed_step, std::int64_t total_steps)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      first_step_(resumed_step),
      total_steps_(total_steps),
      began_(steady_seconds()),
      files_(std::make_unique<Files>()) {
  make_folder(folder_);
  files_->path = folder_ + "/metrics.jsonl";
  std::string kept;
  if (std::filesystem::exists(files_->path)) {
    for (const auto& line : read_metrics(files_->path))
      if (line["step"].get<std::int64_t>() <= resumed_step && line.value("kind", "") != "end")
        kept += line.dump() + "\n";
  }
  write_file(files_->path, kept);
  files_->lines.open(files_->path, std::ios::app);
  if (config.report_to == "tensorboard")
    files_->events.emplace(folder_ + "/tensorboard", resumed_step + 1);
}

Metrics::~Metrics() { log::status(""); }

void Metrics::append(const Json& line) {
  files_->lines << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n" << std::flush;
  expect(files_->lines.good(), Fault::failure, files_->path,
         ": cannot be written; free some space and run it again with "
         "--resume_from_checkpoint last");
}

void Metrics::step(const StepMetrics& m) {
  Json line{{"kind", "train"},
            {"step", m.step},
            {"epoch", m.epoch},
            {"loss", m.loss},
            {"learning_rate", m.learning_rate},
            {"grad_norm", m.grad_norm},
            {"tokens", m.tokens},
            {"tokens_per_second", m.tokens_per_second},
            {"mfu", m.mfu ? Json(*m.mfu) : Json(nullptr)},
            {"step_time", m.step_time},
            {"data_time", m.data_time},
            {"mem_peak", m.mem_peak},
            {"skipped", m.skipped}};
  std::vector<std::pair<std::string, double>> scalars{
      {"train/learning_rate", m.learning_rate},
      {"train/grad_norm", m.grad_norm},
      {"train/epoch", m.epoch},
      {"train/tokens_per_second", m.tokens_per_second}};
  if (!std::isnan(m.loss)) scalars.emplace_back("train/loss", m.loss);
  if (m.loss_image && m.loss_text) {  // else the one there is is the loss
    line["loss_image"] = *m.loss_image;
    line["loss_text"] = *m.loss_text;
    scalars.emplace_back("train/loss_image", *m.loss_image);
    scalars.emplace_back("train/loss_text", *m.loss_text);
  }
  append(line);
  if (files_->events) files_->events->scalars(m.step, scalars);
  if (log::has_status()) {
    log::status(bar_text(name_, m, total_steps_, first_step_, steady_seconds() - began_));
  } else {
    log::info(name_, " step ", m.step, "/", total_steps_, " ", figures(m));
  }
}

void Metrics::line(const std::string& kind, std::int64_t step, const Json& fields) {
  Json line{{"kind", kind}, {"step", step}};
  line.update(fields);
  append(line);
  if (!files_->events || (kind != "eval" && kind != "end")) return;
  std::vector<std::pair<std::string, double>> values;
  for (const auto& [key, value] : fields.items())
    if (value.is_number())
      values.emplace_back((kind == "eval" ? "eval/" : "train/") + key, value.get<double>());
  files_->events->scalars(step, values);
}

void Metrics::draw() {
  const std::string svg = loss_svg(read_metrics(files_->path));
  if (!svg.empty()) write_file(folder_ + "/loss.svg", svg);
}

}  // namespace llava::train
