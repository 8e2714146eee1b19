// docs/troubleshooting.md against the program: every command in it ends as it says.
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <sstream>

namespace llava {
namespace {

struct Shown {
  std::vector<std::string> words;
  std::string message;  // a regular expression
  int exit = 0;
};

/// A message as an expression, in which N stands for any number.
std::string expression(const std::string& message) {
  const auto quoted = std::regex_replace(message, std::regex(R"([.*+?()\[\]{}|^$\\])"), R"(\$&)");
  return std::regex_replace(quoted, std::regex(R"(\bN\b)"), "[0-9]+");
}

std::vector<Shown> read_page(const std::string& path) {
  std::vector<Shown> all;
  std::istringstream lines(read_file(path));
  const std::string start = "    $ llava ", exit = "    exit ";
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(start, 0) == 0) {
      std::istringstream words(line.substr(start.size()));
      all.emplace_back().words = {std::istream_iterator<std::string>(words), {}};
    } else if (line.rfind(exit, 0) == 0) {
      all.back().exit = std::stoi(line.substr(exit.size()));
    } else if (line.rfind("    llava: ", 0) == 0) {
      all.back().message = expression(line.substr(4));
    }
  }
  return all;
}

std::string last_line(const std::string& text) {
  std::istringstream lines(text);
  std::string last;
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) last = line;
  return last;
}

TEST(Troubleshooting, CommandsEndAsThePageSays) {
  const support::TemporaryFolder folder;
  const auto llava_in_folder = [&](std::vector<std::string> words) {
    words.insert(words.begin(), LLAVA_PROGRAM);
    return support::run_command(words, "", folder.path());
  };
  const auto expect_done = [&](const std::vector<std::string>& words) {
    const auto outcome = llava_in_folder(words);
    ASSERT_EQ(outcome.exit, 0) << outcome.err;
  };
  expect_done({"data", "make-scenes", "--output_dir", "world", "--num_single", "4", "--num_train",
               "8", "--num_captions_test", "2", "--num_questions", "7", "--num_texts", "4",
               "--image_size", "56"});
  expect_done({"init", "--shape", "tiny", "--output_dir", "model", "--image_size", "56"});
  expect_done({"train", "--model_name_or_path", "model", "--tune_mm_mlp_adapter", "--data_path",
               "world/captions.json", "--image_folder", "world/images", "--output_dir", "stage1",
               "--max_steps", "1"});
  const auto page = read_page(LLAVA_SOURCE "/docs/troubleshooting.md");
  EXPECT_GE(page.size(), 8u);
  for (const auto& shown : page) {
    const bool has_driver =
        std::ranges::find(shown.words, "cuda") != shown.words.end() &&
        llava_in_folder({"run", "-m", "model", "-p", "hi", "-n", "1", "--device", "cuda"}).exit ==
            0;
    if (has_driver) continue;
    const auto outcome = llava_in_folder(shown.words);
    EXPECT_EQ(outcome.exit, shown.exit) << shown.words[0] << ": " << outcome.err;
    EXPECT_TRUE(std::regex_match(last_line(outcome.err), std::regex(shown.message)))
        << last_line(outcome.err) << "\n"
        << shown.message;
  }
}

}  // namespace
}  // namespace llava
