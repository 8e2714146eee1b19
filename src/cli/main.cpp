#include "llava/base/log.h"
#include "llava/base/truncated.h"
#include "llava/cli/args.h"
#include "llava/torch.h"

#include <torch/version.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>

namespace {

using llava::cli::Command;

constexpr Command kCommands[] = {
    {"train", "train Stage 1, Stage 2, LoRA or any mix of trainable parts", llava::cli::train},
    {"run", "answer one prompt about images or a video, or a file of questions", llava::cli::run},
    {"chat", "talk about images in the terminal", llava::cli::chat},
    {"data", "check, count and show a training set", llava::cli::data},
    {"convert", "between layouts and dtypes; merge LoRA", llava::cli::convert},
    {"init", "make a new model folder", llava::cli::init},
    {"plan", "memory, hours and disk of a training run before it starts", llava::cli::plan},
    {"inspect", "tell what a model folder is", llava::cli::inspect},
    {"doctor", "check the machine and the build", llava::cli::doctor},
    {"bench", "measure vision, prefill, decode and a train step", llava::cli::bench},
};

void print_commands(std::FILE* out) {
  std::fputs("usage: llava VERB [options]   (llava VERB --help lists a verb's options)\n\n", out);
  for (const auto& command : kCommands)
    std::fprintf(out, "  %-8s %s\n", command.name.data(), command.summary.data());
}

/// One line for people, whatever the message holds.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (std::size_t at; (at = text.find('\n')) != std::string::npos;) text.replace(at, 1, "; ");
  return text;
}

int report(llava::Fault fault, const std::string& text) {
  llava::log::status("");
  std::fprintf(stderr, "llava: %s\n", one_line(text).c_str());
  return static_cast<int>(fault);
}

int dispatch(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "--version" || verb == "-V") {
    std::printf("llava %s (LibTorch %s)\n", LLAVA_VERSION, TORCH_VERSION);
    return 0;
  }
  if (verb == "--help" || verb == "-h" || verb == "help") {
    print_commands(stdout);
    return 0;
  }
  std::vector<std::string> names;
  for (const auto& command : kCommands) {
    if (command.name == verb) return command.run({argv + 2, argv + argc});
    names.emplace_back(command.name);
  }
  if (verb.empty()) {
    print_commands(stderr);
    return static_cast<int>(llava::Fault::usage);
  }
  llava::fail(llava::Fault::usage, "there is no verb \"", verb, "\"",
              llava::suggestion(verb, names), "; llava --help lists them");
}

/// Results that nobody could be given are a failure of whatever verb made them.
int with_written_results(int code) {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  const std::string why = errno != 0 ? std::string(" (") + std::strerror(errno) + ")" : "";
  report(llava::Fault::failure, "stdout cannot be written" + why);
  return code != 0 ? code : static_cast<int>(llava::Fault::failure);
}

}  // namespace

int main(int argc, char** argv) try {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write, not a death
  llava::report_truncated_files();
  return with_written_results(dispatch(argc, argv));
} catch (const llava::Error& error) {
  return report(error.fault(), error.what());
} catch (const std::bad_alloc&) {
  return report(llava::Fault::capacity, "out of memory; use a smaller model, batch or context");
} catch (const c10::OutOfMemoryError& error) {
  return report(llava::Fault::capacity, error.what_without_backtrace());
} catch (const c10::Error& error) {
  const std::string text = error.what_without_backtrace();
  const bool memory = text.find("allocate memory") != std::string::npos;
  return report(memory ? llava::Fault::capacity : llava::Fault::failure, text);
} catch (const std::exception& error) {
  return report(llava::Fault::failure, error.what());
}
