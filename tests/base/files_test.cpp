#include "llava/base/files.h"

#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

namespace llava {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::HasSubstr;

std::size_t entries(const std::string& folder) {
  const std::filesystem::directory_iterator all(folder);
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

TEST(Files, ReadsAndMapsWhatWasWritten) {
  const TemporaryFolder folder;
  write_file(folder / "a", std::string("x\0y", 3));
  EXPECT_EQ(read_file(folder / "a"), std::string("x\0y", 3));
  const MappedFile mapped(folder / "a");
  EXPECT_EQ(std::string_view(mapped.data(), mapped.size()), std::string_view("x\0y", 3));
  write_file(folder / "empty", "");
  EXPECT_EQ(MappedFile(folder / "empty").size(), 0u);
}

TEST(Files, WritingToAMappingLeavesTheFile) {
  const TemporaryFolder folder;
  write_file(folder / "a", "abc");
  MappedFile(folder / "a").data()[0] = 'X';
  EXPECT_EQ(read_file(folder / "a"), "abc");
}

TEST(Files, MissingAndIrregularFilesAreNamed) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::data, [&] { read_file(folder / "none"); }), HasSubstr("none"));
  EXPECT_THAT(error_of(Fault::data, [&] { MappedFile{folder.path()}; }), HasSubstr("regular"));
}

TEST(AtomicFile, WritesWhereALinkLeadsAndKeepsTheLink) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "there");
  std::filesystem::create_symlink("there/a", folder / "link");
  for (const char* text : {"new", "newer"}) {  // the first finds nothing there yet
    write_file(folder / "link", text);
    EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
    EXPECT_EQ(read_file(folder / "there/a"), text);
  }
}

TEST(AtomicFile, NeverReplacesAPipeOrDevice) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", folder / "null");
  for (const char* name : {"pipe", "null"}) {
    EXPECT_THAT(error_of(Fault::usage, [&] { write_file(folder / name, "x"); }),
                HasSubstr("no regular file"));
    EXPECT_TRUE(std::filesystem::is_other(folder / name));
  }
}

TEST(AtomicFile, LeavesTheOldFileUntilCommit) {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
    EXPECT_EQ(read_file(folder / "a"), "old");
  }
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(entries(folder.path()), 1u);  // nothing temporary is left
  AtomicFile file(folder / "a");
  file.write("new");
  file.write_at(0, "N");
  file.commit();
  EXPECT_EQ(read_file(folder / "a"), "New");
}

TEST(AtomicFile, UnwritablePlaceIsAUsageError) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::usage, [&] { write_file(folder / "no/such/a", "x"); }),
              HasSubstr("no/such/a"));
}

// The limit on file size stands in for a full disk: the write fails in the middle.
TEST(AtomicFile, FailedWriteKeepsTheOldFile) {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1024, 1024};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_file(folder / "a", std::string(100000, 'x'));
    } catch (const Error& error) {
      ::_exit(static_cast<int>(error.fault()));
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(Fault::failure));
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(PathInside, RefusesNamesThatLeadOut) {
  EXPECT_EQ(path_inside("/data", "coco/1.jpg", "image"), "/data/coco/1.jpg");
  for (const char* name : {"../a", "a/../../b", "/etc/passwd", "", ".."})
    EXPECT_THAT(error_of(Fault::data, [&] { path_inside("/data", name, "image"); }),
                HasSubstr("image"));
  EXPECT_EQ(path_inside("/data", "a..b/c", "image"), "/data/a..b/c");
}

TEST(MakeFolder, NamesWhatIsInTheWay) {
  const TemporaryFolder folder;
  make_folder(folder / "a/b");
  make_folder(folder / "a/b");  // again is fine
  write_file(folder / "file", "x");
  EXPECT_THAT(error_of(Fault::usage, [&] { make_folder(folder / "file/c"); }), HasSubstr("file/c"));
  EXPECT_THAT(error_of(Fault::usage, [&] { make_folder(folder / "file"); }),
              HasSubstr("cannot be made"));
}

}  // namespace
}  // namespace llava
