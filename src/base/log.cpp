#include "llava/base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>

namespace llava::log {
namespace {

/// stderr with a status line kept below the log lines.
class StatusSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void set_status(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (text == status_) return;
    erase();
    status_ = text;
    draw();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    erase();
    std::fwrite(text.data(), 1, text.size(), stderr);
    draw();
  }
  void flush_() override { std::fflush(stderr); }

 private:
  void erase() {
    if (!status_.empty()) std::fputs("\r\033[K", stderr);
  }
  void draw() {
    if (!status_.empty()) std::fputs(status_.c_str(), stderr);
    std::fflush(stderr);
  }
  std::string status_;
};

/// The process's one logger: state of the terminal, not of the program's results.
struct Output {
  std::shared_ptr<StatusSink> sink = std::make_shared<StatusSink>();
  spdlog::logger logger{"llava", sink};
  std::atomic<Level> level{Level::info};
  std::atomic<int> rank{0};
  bool terminal = ::isatty(STDERR_FILENO) == 1;

  Output() {
    logger.set_level(spdlog::level::trace);
    logger.set_pattern("%H:%M:%S %l %v");
  }
};

Output& output() {
  static Output instance;
  return instance;
}

spdlog::level::level_enum spdlog_level(Level level) {
  switch (level) {
    case Level::debug: return spdlog::level::debug;
    case Level::info: return spdlog::level::info;
    case Level::warn: return spdlog::level::warn;
    case Level::error: return spdlog::level::err;
    case Level::off: return spdlog::level::off;
  }
  return spdlog::level::off;
}

}  // namespace

void set_level(Level level) { output().level = level; }

Level level() {
  const auto& state = output();
  const Level chosen = state.level;
  return state.rank == 0 || chosen > Level::warn ? chosen : Level::warn;
}

void set_rank(int rank, int world_size) {
  output().rank = rank;
  output().logger.set_pattern(world_size > 1 ? "%H:%M:%S %l [rank " + std::to_string(rank) + "] %v"
                                             : "%H:%M:%S %l %v");
}

void line(Level at, const std::string& text) { output().logger.log(spdlog_level(at), text); }

bool has_status() {
  const auto& state = output();
  return state.terminal && state.rank == 0 && state.level <= Level::info;
}

void status(const std::string& text) {
  if (has_status()) output().sink->set_status(text);
}

}  // namespace llava::log
