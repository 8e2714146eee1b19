#include "llava/train/checkpoint.h"

#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <thread>

namespace llava::train {
namespace {

namespace fs = std::filesystem;
using support::error_of;
using support::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Checkpoint checkpoint_of(std::int64_t step) {
  Checkpoint checkpoint;
  checkpoint.step = step;
  checkpoint.state = {{"note", "step " + std::to_string(step)}};
  checkpoint.tensors.add("w", torch::full({5}, static_cast<float>(step)));
  checkpoint.tensors.add("codes", torch::arange(7, torch::kUInt8));
  return checkpoint;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, ComesBackAsItWas) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), checkpoint_of(20));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint-20"));
  EXPECT_THAT(names_in(folder / "checkpoint-20"),
              ElementsAre("manifest.json", "state-0.safetensors"));
  const auto loaded = read_checkpoint(folder / "checkpoint-20");
  EXPECT_EQ(loaded.step, 20);
  EXPECT_EQ(loaded.state["note"], "step 20");
  EXPECT_TRUE(torch::equal(loaded.tensors.at("w"), torch::full({5}, 20.0F)));
  EXPECT_TRUE(torch::equal(loaded.tensors.at("codes"), torch::arange(7, torch::kUInt8)));
}

/// Every way in which a checkpoint's files can be cut or changed by one byte.
TEST(Checkpoint, NoTornStateIsEverTaken) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), checkpoint_of(10));
  write_checkpoint(folder.path(), checkpoint_of(20));
  const std::string path = folder / "checkpoint-20";
  int states = 0;
  const auto expect_refused = [&](const std::string& what) {
    ++states;
    EXPECT_ANY_THROW(read_checkpoint(path)) << what;
    ASSERT_EQ(last_checkpoint(folder.path()), folder / "checkpoint-10") << what;
  };
  for (const auto& name : names_in(path)) {
    const std::string file = path + "/" + name, whole = read_file(file);
    fs::remove(file);
    expect_refused(name + " missing");
    for (std::size_t size = 0; size < whole.size(); ++size) {
      std::ofstream(file, std::ios::binary) << whole.substr(0, size);
      expect_refused(name + " cut to " + std::to_string(size));
    }
    for (std::size_t at = 0; at < whole.size(); ++at) {
      std::string bent = whole;
      bent[at] = static_cast<char>(bent[at] ^ 1);
      std::ofstream(file, std::ios::binary) << bent;
      expect_refused(name + " bent at " + std::to_string(at));
    }
    std::ofstream(file, std::ios::binary) << whole + "x";
    expect_refused(name + " with a tail");
    std::ofstream(file, std::ios::binary) << whole;
  }
  EXPECT_EQ(last_checkpoint(folder.path()), path);
  EXPECT_GT(states, 700);
}

TEST(Checkpoint, FilesOfTwoStepsDoNotMix) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), checkpoint_of(10));
  write_checkpoint(folder.path(), checkpoint_of(20));
  fs::copy_file(folder / "checkpoint-10/state-0.safetensors",
                folder / "checkpoint-20/state-0.safetensors", fs::copy_options::overwrite_existing);
  EXPECT_THAT(error_of(Fault::data, [&] { read_checkpoint(folder / "checkpoint-20"); }),
              HasSubstr("state-0.safetensors: its checksum does not fit"));
}

TEST(Checkpoint, LastIgnoresWhatIsNotOne) {
  const TemporaryFolder folder;
  EXPECT_EQ(last_checkpoint(folder.path()), "");
  EXPECT_EQ(last_checkpoint(folder / "not there"), "");
  write_checkpoint(folder.path(), checkpoint_of(9));
  write_checkpoint(folder.path(), checkpoint_of(10));
  fs::create_directory(folder / "checkpoint-99");
  fs::create_directory(folder / "checkpoint-11.unfinished-77");
  fs::create_directory(folder / "checkpoint-");
  fs::create_directory(folder / "checkpoint-12a");
  EXPECT_THAT(
      list_checkpoints(folder.path()),
      ElementsAre(folder / "checkpoint-99", folder / "checkpoint-10", folder / "checkpoint-9"));
  EXPECT_EQ(last_checkpoint(folder.path()), folder / "checkpoint-10");
  remove_unfinished_checkpoints(folder.path());
  EXPECT_FALSE(fs::exists(folder / "checkpoint-11.unfinished-77"));
  EXPECT_TRUE(fs::exists(folder / "checkpoint-10"));
}

TEST(Checkpoint, TornOneOfTheSameStepIsMovedAside) {
  const TemporaryFolder folder;
  folder.write("checkpoint-5/state-0.safetensors", "half");
  write_checkpoint(folder.path(), checkpoint_of(5));
  EXPECT_EQ(read_checkpoint(folder / "checkpoint-5").step, 5);
  EXPECT_EQ(names_in(folder.path()).size(), 2u);  // the torn one is kept for inspection
  write_checkpoint(folder.path(), checkpoint_of(5));
  EXPECT_EQ(names_in(folder.path()).size(), 2u);  // a whole one is replaced
}

TEST(Checkpoint, PruningKeepsTheNewest) {
  const TemporaryFolder folder;
  for (const int step : {1, 2, 10, 9}) write_checkpoint(folder.path(), checkpoint_of(step));
  prune_checkpoints(folder.path(), 0);
  EXPECT_EQ(names_in(folder.path()).size(), 4u);
  prune_checkpoints(folder.path(), 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint-10", "checkpoint-9"));
}

TEST(Checkpoint, OfSeveralRanksIsOne) {
  const TemporaryFolder folder;
  const auto whole = torch::arange(1000, torch::kFloat32);
  const auto scales = torch::arange(4, torch::kFloat32);
  Checkpoint first{7, {{"note", "of rank 0"}}, {}}, second{7, {}, {}};
  first.tensors.add("exp_avg.w[0:512]", whole.slice(0, 0, 512));
  first.tensors.add("avg_scale.w[0:512]", scales.slice(0, 0, 2));
  second.tensors.add("exp_avg.w[512:1000]", whole.slice(0, 512, 1000));
  second.tensors.add("avg_scale.w[512:1000]", scales.slice(0, 2, 4));
  second.tensors.add("exp_avg.w2", torch::zeros({3}));
  std::thread other([&] { write_checkpoint(folder.path(), second, {1, 2, "token"}); });
  write_checkpoint(folder.path(), first, {0, 2, "token"});
  other.join();
  EXPECT_THAT(names_in(folder / "checkpoint-7"),
              ElementsAre("manifest.json", "state-0.safetensors", "state-1.safetensors"));

  const auto loaded = read_checkpoint(folder / "checkpoint-7");
  EXPECT_EQ(loaded.state["note"], "of rank 0");
  auto together = torch::empty({10, 100}), middle = torch::empty({512}), scale = torch::empty({3});
  restore_tensor(loaded.tensors, "exp_avg.w", together, 256);
  EXPECT_TRUE(torch::equal(together.view({-1}), whole));
  restore_tensor(loaded.tensors, "exp_avg.w[256:768]", middle, 256);
  EXPECT_TRUE(torch::equal(middle, whole.slice(0, 256, 768)));
  restore_tensor(loaded.tensors, "avg_scale.w[256:1000]", scale, 256);
  EXPECT_TRUE(torch::equal(scale, scales.slice(0, 1)));
  EXPECT_THAT(
      error_of(Fault::data,
               [&] { restore_tensor(loaded.tensors, "exp_avg.w", torch::empty({1001}), 256); }),
      HasSubstr("1000 of the 1001 values of exp_avg.w"));
  EXPECT_THAT(error_of(Fault::data,
                       [&] {
                         restore_tensor(loaded.tensors, "exp_avg.w2",
                                        torch::empty({3}, torch::kInt8), 256);
                       }),
              HasSubstr("is Float, not Char"));
}

TEST(Checkpoint, IsNotWrittenWhenARankLeaves) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), checkpoint_of(1));
  EXPECT_THAT(
      error_of(
          Fault::peer,
          [&] {
            write_checkpoint(folder.path(), checkpoint_of(2), {0, 2, "token"}, [] { return true; });
          }),
      HasSubstr("rank 1 did not write its part"));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint-1"));
}

TEST(Checkpoint, SaveThatTheDiskRefusesLeavesTheEarlierOne) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), checkpoint_of(1));
  auto large = checkpoint_of(2);
  large.tensors.add("large", torch::zeros({100'000}));
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {0, 10, 1000, 200'000, 399'999}) {  // wherever the file stands then
    rlimit small = before;
    small.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &small);
    EXPECT_THROW(write_checkpoint(folder.path(), large), Error) << bytes;
    ::setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint-1")) << bytes;
    EXPECT_EQ(last_checkpoint(folder.path()), folder / "checkpoint-1");
  }
  std::signal(SIGXFSZ, handler);
  write_checkpoint(folder.path(), large);
  EXPECT_EQ(last_checkpoint(folder.path()), folder / "checkpoint-2");
}

TEST(CheckpointWriter, SavesWhatWasThereWhenAsked) {
  const TemporaryFolder folder;
  auto checkpoint = checkpoint_of(3);
  std::atomic<bool> saved{false};
  CheckpointWriter writer(folder.path(), 1);
  writer.save(checkpoint, [&] { saved = true; });
  checkpoint.tensors.at("w").fill_(-1);  // training goes on
  writer.wait();
  EXPECT_TRUE(saved);
  EXPECT_TRUE(torch::equal(read_checkpoint(folder / "checkpoint-3").tensors.at("w"),
                           torch::full({5}, 3.0F)));
  writer.save(checkpoint_of(4), {});
  writer.wait();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint-4"));
}

TEST(CheckpointWriter, ErrorOfASaveReachesTheNextCall) {
  const TemporaryFolder folder;
  const std::string output = folder.write("file", "in the way");
  CheckpointWriter writer(output, 0);
  writer.save(checkpoint_of(3), {});
  EXPECT_THAT(error_of(Fault::usage, [&] { writer.wait(); }), HasSubstr(output));
}

TEST(Checkpoint, MissingPathIsADataError) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::data, [&] { read_checkpoint(folder / "checkpoint-1"); }),
              HasSubstr("manifest.json"));
}

TEST(Checkpoint, RefusesWhatMakesNoSense) {
  const auto message = [](const CheckpointConfig& config) {
    return error_of(Fault::usage, [&] { check(config); });
  };
  EXPECT_THAT(message({.save_strategy = "sometimes"}), HasSubstr("--save_strategy"));
  EXPECT_THAT(message({.save_steps = 0}), HasSubstr("--save_steps"));
  EXPECT_THAT(message({.save_total_limit = -1}), HasSubstr("--save_total_limit"));
}

}  // namespace
}  // namespace llava::train
