#include "llava/base/truncated.h"

#include "llava/base/check.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdint>
#include <string_view>

namespace llava {
namespace {

// Everything below runs in a signal handler: system calls and memory of its own, no allocation.

constexpr std::size_t kLongestLine = 8192;

void print(std::string_view text) {
  [[maybe_unused]] const auto count = ::write(STDERR_FILENO, text.data(), text.size());
}

/// The next line of a file, "" at its end.
std::string_view next_line(int file, char (&line)[kLongestLine]) {
  std::size_t length = 0;
  for (char c; ::read(file, &c, 1) == 1 && c != '\n';)
    if (length < kLongestLine) line[length++] = c;
  return {line, length};
}

/// The file mapped at an address, "" if none is.  Source: proc(5), /proc/pid/maps:
/// "begin-end perms offset device inode   path", in hexadecimal.
std::string_view mapped_at(std::uintptr_t address, char (&buffer)[kLongestLine]) {
  const int file = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  for (auto line = next_line(file, buffer); !line.empty(); line = next_line(file, buffer)) {
    std::uintptr_t begin = 0, end = 0;
    const char* last = line.data() + line.size();
    const auto after = std::from_chars(line.data(), last, begin, 16).ptr;
    if (after != last) std::from_chars(after + 1, last, end, 16);
    const auto path = line.find('/');
    if (begin <= address && address < end) return path == line.npos ? "" : line.substr(path);
  }
  return "";
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  static char buffer[kLongestLine];
  const auto path = mapped_at(reinterpret_cast<std::uintptr_t>(info->si_addr), buffer);
  if (path.empty()) {  // something else, which dies of it as before
    std::signal(signal, SIG_DFL);
    return;
  }
  print("llava: ");
  print(path);
  print(": became shorter while it was read; restore the file and run it again\n");
  ::_exit(static_cast<int>(Fault::data));
}

}  // namespace

void report_truncated_files() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace llava
