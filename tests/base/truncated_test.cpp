#include "llava/base/truncated.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

namespace llava {
namespace {

/// Reads a mapped file that was cut meanwhile.
void read_lost_page(const std::string& path) {
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  const MappedFile file(path);
  std::filesystem::resize_file(path, 0);
  [[maybe_unused]] const volatile char byte = file.data()[0];
}

TEST(TruncatedDeathTest, OneLineNamesTheFileAndTheExitCodeIsDatas) {
  const support::TemporaryFolder folder;
  const auto path = folder.write("weights.safetensors", std::string(10'000, 'x'));
  EXPECT_EXIT(
      {
        report_truncated_files();
        read_lost_page(path);
      },
      testing::ExitedWithCode(static_cast<int>(Fault::data)),
      "^llava: /.*weights.safetensors: became shorter while it was read");
}

TEST(TruncatedDeathTest, OtherBusErrorsEndTheProcessAsBefore) {
  EXPECT_EXIT(
      {
        report_truncated_files();
        ::raise(SIGBUS);
        ::raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace llava
