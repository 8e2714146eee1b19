#include "line_reader.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <clocale>
#include <csignal>
#include <cstdlib>
#include <iostream>

#ifdef LLAVA_HAVE_LIBEDIT
#include <editline/readline.h>
#endif

namespace llava::cli {
namespace {

// What the signal handler sees; a signal leaves no other way to tell.
volatile std::sig_atomic_t is_at_prompt = 1, interrupts = 0;
termios usual_terminal;  // as it was before a line was edited

constexpr int kLeftByInterrupt = 130;  // 128 + SIGINT, as shells have it

extern "C" void on_interrupt(int) {
  interrupts = interrupts + 1;
  if (!is_at_prompt && interrupts < 2) return;
  // Nothing is half-written while a person types or reads.
  ::tcsetattr(STDIN_FILENO, TCSANOW, &usual_terminal);
  const ssize_t ignored = ::write(STDOUT_FILENO, "\n", 1);
  static_cast<void>(ignored);
  ::_exit(kLeftByInterrupt);
}

void catch_interrupts() {
  std::setlocale(LC_CTYPE, "");  // so that a letter of several bytes is edited as one
  ::tcgetattr(STDIN_FILENO, &usual_terminal);
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

}  // namespace

bool is_interactive() { return ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1; }

std::optional<std::string> read_line(const std::string& prompt) {
  is_at_prompt = 1;
  static const bool is_person = is_interactive() && (catch_interrupts(), true);
#ifdef LLAVA_HAVE_LIBEDIT
  if (is_person) {
    char* typed = ::readline(prompt.c_str());
    if (!typed) return std::nullopt;
    std::string line(typed);
    std::free(typed);
    if (!line.empty()) ::add_history(line.c_str());
    return line;
  }
#endif
  if (is_person) std::cout << prompt << std::flush;
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

void begin_answer() {
  interrupts = 0;
  is_at_prompt = 0;
}

bool is_interrupted() { return interrupts > 0; }

}  // namespace llava::cli
