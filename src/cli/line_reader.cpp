#include "line_reader.h"

#include <signal.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>

#ifdef LLAVA_HAVE_LIBEDIT
#include <editline/readline.h>
#endif

namespace llava::cli {
namespace {

// Signals leave no other way to tell: how often Ctrl-C came, and whether an answer is being made.
volatile std::sig_atomic_t interrupts = 0;
volatile std::sig_atomic_t is_answering = 0;

constexpr int kLeftByInterrupt = 130;  // 128 + SIGINT, as shells have it

extern "C" void on_interrupt(int) {
  interrupts = interrupts + 1;
  if (is_answering && interrupts >= 2) ::_exit(kLeftByInterrupt);
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: reading a line must notice
  ::sigaction(SIGINT, &action, nullptr);
}

}  // namespace

bool is_interactive() { return ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1; }

std::optional<std::string> read_line(const std::string& prompt) {
#ifdef LLAVA_HAVE_LIBEDIT
  if (is_interactive()) {
    is_answering = 0;
    interrupts = 0;
    catch_interrupts();
    char* typed = ::readline(prompt.c_str());
    if (!typed) return std::nullopt;
    std::string line(typed);
    std::free(typed);
    if (!line.empty()) ::add_history(line.c_str());
    return line;
  }
#endif
  if (is_interactive()) std::cout << prompt << std::flush;
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

void begin_answer() {
  interrupts = 0;
  is_answering = 1;
  if (is_interactive()) catch_interrupts();
}

bool is_interrupted() { return interrupts > 0; }

}  // namespace llava::cli
