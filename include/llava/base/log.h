// Levelled lines to stderr, tagged with the rank, and one status line (the progress bar) that no
// log line tears. spdlog does the work, in log.cpp alone.
#pragma once

#include <sstream>
#include <string>

namespace llava::log {

enum class Level { debug, info, warn, error, off };

/// Lines below this level are dropped. Default: info.
void set_level(Level level);
Level level();

/// Which of several processes this is: `info` and `debug` print on rank 0 only, `warn` and `error`
/// on every rank with the rank in front. Default: rank 0 of 1.
void set_rank(int rank, int world_size);

void line(Level level, const std::string& text);

/// The line that stays last on a terminal; empty removes it. Does nothing where stderr is no
/// terminal, below level info, and on ranks other than 0.
void status(const std::string& text);

/// Whether status() shows anything.
bool has_status();

template <class... Parts>
void write(Level at, const Parts&... parts) {
  if (at < level()) return;
  std::ostringstream text;
  (text << ... << parts);
  line(at, text.str());
}

template <class... Parts>
void debug(const Parts&... parts) {
  write(Level::debug, parts...);
}
template <class... Parts>
void info(const Parts&... parts) {
  write(Level::info, parts...);
}
template <class... Parts>
void warn(const Parts&... parts) {
  write(Level::warn, parts...);
}
template <class... Parts>
void error(const Parts&... parts) {
  write(Level::error, parts...);
}

}  // namespace llava::log
