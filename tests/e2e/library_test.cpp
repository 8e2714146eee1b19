// The README's program, built outside the tree against the installed library, and run.
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using support::llava;
using support::run_command;

/// The first block of README.md between ```LANGUAGE and ```.
std::string readme_block(const std::string& language) {
  const auto readme = read_file(LLAVA_SOURCE "/README.md");
  const auto fence = "```" + language + "\n";
  const auto begin = readme.find(fence);
  EXPECT_NE(begin, std::string::npos) << language;
  const auto code = readme.substr(begin + fence.size());
  return code.substr(0, code.find("```"));
}

TEST(Library, ReadmeProgramLinksTheInstalledLibraryAndRuns) {
  const support::TemporaryFolder folder;
  const auto prefix = folder / "prefix";
  const auto install = run_command({"cmake", "--install", LLAVA_BUILD, "--prefix", prefix});
  ASSERT_EQ(install.exit, 0) << install.err;

  folder.write("app/main.cpp", readme_block("cpp"));
  folder.write("app/CMakeLists.txt", readme_block("cmake"));
  const auto configure = run_command({"cmake", "-S", folder / "app", "-B", folder / "build", "-G",
                                      "Ninja", "-DCMAKE_PREFIX_PATH=" + prefix});
  ASSERT_EQ(configure.exit, 0) << configure.err;
  const auto build = run_command({"cmake", "--build", folder / "build"});
  ASSERT_EQ(build.exit, 0) << build.out;

  const auto made = llava({"init", "--shape", "tiny", "--output_dir", folder / "model"});
  ASSERT_EQ(made.exit, 0) << made.err;
  const auto world = llava({"data", "make-scenes", "--output_dir", folder / "world", "--num_single",
                            "1", "--num_train", "1", "--num_captions_test", "1", "--num_questions",
                            "1", "--num_texts", "1"});
  ASSERT_EQ(world.exit, 0) << world.err;
  const auto run = run_command(
      {folder / "build/app", folder / "model", folder / "world/images/blank.png", "What is this?"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_NE(run.out, "");

  // The installed program stands on its own too.
  const auto version = run_command({prefix + "/bin/llava", "--version"});
  EXPECT_EQ(version.exit, 0) << version.err;
}

}  // namespace
}  // namespace llava
