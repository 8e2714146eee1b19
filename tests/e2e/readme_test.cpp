// README.md against the program: every command in it that needs neither published weights nor GPUs
// ends well, in the order of the page.
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>

#include <sstream>

namespace llava {
namespace {

/// What a section's indented lines tell the shell that begins with ./build/release/llava.
std::vector<std::string> commands_of(const std::string& page, const std::string& section) {
  const auto begin = page.find("\n## " + section + "\n");
  EXPECT_NE(begin, std::string::npos) << section;
  std::istringstream lines(page.substr(begin + 1, page.find("\n## ", begin + 1) - begin));
  std::vector<std::string> commands;
  bool goes_on = false;
  for (std::string line; std::getline(lines, line);) {
    const bool starts = line.rfind("    ./build/release/llava ", 0) == 0;
    if (starts) commands.emplace_back();
    if (starts || goes_on) commands.back() += line.substr(4) + "\n";
    goes_on = (starts || goes_on) && line.ends_with('\\');
  }
  return commands;
}

TEST(Readme, CommandsOfEverySectionRun) {
  const support::TemporaryFolder folder;
  std::filesystem::create_directories(folder / "build/release");
  std::filesystem::create_symlink(LLAVA_PROGRAM, folder / "build/release/llava");
  const auto page = read_file(LLAVA_SOURCE "/README.md");
  std::size_t number = 0;
  for (const char* section :
       {"From nothing to an answer", "Your own pictures and conversations", "Faster answers"}) {
    for (auto command : commands_of(page, section)) {
      // The page's world has 22,000 pictures, which takes half a minute.
      if (command.find("make-scenes") != command.npos)
        command.insert(command.find(" --output_dir"),
                       " --num_single 20 --num_train 100 --num_texts 20 --num_questions 14");
      const auto outcome = support::run_command({"sh", "-c", command}, "", folder.path());
      ASSERT_EQ(outcome.exit, 0) << command << outcome.err;
      ++number;
    }
  }
  EXPECT_EQ(number, 15U) << "the page has changed: are all of its commands still run?";
}

}  // namespace
}  // namespace llava
