#include "llava/dist/launch.h"

#include "llava/base/check.h"
#include "support/expect_error.h"
#include "support/ranks.h"

#include <gmock/gmock.h>

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>

namespace llava::dist {
namespace {

using support::Outcome;
using support::run_ranks;
using ::testing::HasSubstr;
using ::testing::Not;

/// Runs a scenario as a person would: one process that no launcher started.
Outcome run_alone(const std::string& scenario, std::map<std::string, std::string> environment,
                  double limit_seconds = 60) {
  for (const char* name : {"RANK", "LOCAL_RANK", "WORLD_SIZE"}) environment.emplace(name, "");
  return run_ranks({.scenario = scenario,
                    .ranks = 1,
                    .environment = environment,
                    .limit_seconds = limit_seconds})[0];
}

TEST(Rank, DISABLED_LaunchesThree) {
  support::play([] {
    if (const auto code = launch({.nproc_per_node = 3}, 0)) {
      std::printf("launcher %d\n", *code);
      return *code;
    }
    const ProcessGroup group(support::group_config(), place_from_environment());
    const auto sum = group.sum(torch::ones({1}) * static_cast<double>(group.rank() + 1));
    if (group.rank() == 0)
      std::printf("sum %g threads %s\n", sum.item<double>(), std::getenv("OMP_NUM_THREADS"));
    const auto what = support::text("LLAVA_TEST_FAULT");
    if (what == "data" && group.rank() == 1) fail(Fault::data, "broken.jpg: no picture");
    if (what == "kill" && group.rank() == 1) ::raise(SIGKILL);
    if (what == "kill launcher" && group.rank() == 1) ::kill(::getppid(), SIGKILL);
    if (what == "terminate" && group.rank() == 0) ::kill(::getppid(), SIGTERM);
    for (int step = 1; !what.empty(); ++step) {
      group.note(step);
      group.sum(torch::ones({1}), "loss");
    }
    return 0;
  });
}

TEST(Rank, DISABLED_StartsOver) {
  support::play([] {
    let_waiting_threads_sleep();  // does not come back the first time
    const char* rounds = std::getenv("GOMP_SPINCOUNT");
    std::printf("rounds %s\n", rounds ? rounds : "as before");
    return 0;
  });
}

TEST(Launch, WaitingThreadsSleepUnlessToldHowToWait) {
  if (std::getenv("GOMP_SPINCOUNT") == nullptr) {
    const auto outcome = run_alone("StartsOver", {});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("rounds 30000"));
    EXPECT_THAT(run_alone("StartsOver", {{"OMP_WAIT_POLICY", "active"}}).out,
                HasSubstr("rounds as before"));
  }
  EXPECT_THAT(run_alone("StartsOver", {{"GOMP_SPINCOUNT", "7"}}).out, HasSubstr("rounds 7"));
}

TEST(Launch, StartsRanksThatMeet) {
  const auto outcome = run_alone("LaunchesThree", {{"OMP_NUM_THREADS", "2"}});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("sum 6 threads 2"));
  EXPECT_THAT(outcome.out, HasSubstr("launcher 0"));
}

TEST(Launch, OwnCodeOfTheFailedRankWins) {
  const auto outcome = run_alone("LaunchesThree", {{"LLAVA_TEST_FAULT", "data"}}, 30);
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("broken.jpg: no picture"));
  EXPECT_THAT(outcome.err, HasSubstr("rank 1 did not answer"));
}

TEST(Launch, KilledRankEndsAllWithCodeFive) {
  const auto begin = std::chrono::steady_clock::now();
  const auto outcome = run_alone("LaunchesThree", {{"LLAVA_TEST_FAULT", "kill"}}, 30);
  EXPECT_EQ(outcome.code, 5) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("rank 1 of 3 (process "));
  EXPECT_THAT(outcome.err, HasSubstr("was ended by signal 9 (Killed)"));
  EXPECT_THAT(outcome.err, HasSubstr("rank 0 of 3: all_reduce of loss failed in step"));
  // Its ends of the pipes are closed: no rank is left.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

// The ranks hold the pipes' other ends: that run_ranks returns before its limit shows that they
// have ended too.
TEST(Launch, RanksGoWithTheirLauncher) {
  const auto begin = std::chrono::steady_clock::now();
  const auto outcome = run_alone("LaunchesThree", {{"LLAVA_TEST_FAULT", "kill launcher"}}, 60);
  EXPECT_EQ(outcome.code, 128 + SIGKILL);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST(Launch, SignalsArePassedOn) {
  const auto outcome = run_alone("LaunchesThree", {{"LLAVA_TEST_FAULT", "terminate"}}, 30);
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.err, HasSubstr("was ended by signal 15 (Terminated)"));
}

TEST(Launch, CountsThatMakeNoSenseAreRefused) {
  EXPECT_THAT(support::error_of(Fault::usage, [] { launch({.nproc_per_node = -1}, 0); }),
              HasSubstr("--nproc_per_node is -1"));
  EXPECT_THAT(support::error_of(Fault::usage, [] { launch({.nproc_per_node = 4}, 2); }),
              HasSubstr("needs as many GPUs, but 2 can be seen"));
  EXPECT_EQ(launch({}, 0), std::nullopt);
  EXPECT_EQ(launch({}, 1), std::nullopt);
}

TEST(Launch, EachProcessHasItsGpu) {
  Place place;
  place.world_size = place.local_world_size = 4;
  place.local_rank = 3;
  place.launcher = "torchrun";
  EXPECT_EQ(device_index(place, 4), 3);
  EXPECT_THAT(support::error_of(Fault::usage, [&] { device_index(place, 2); }),
              HasSubstr("process 3 of 4 on this machine has no GPU: 2 can be seen"));
  EXPECT_THAT(support::error_of(Fault::usage, [&] { device_index(place, 1); }),
              HasSubstr("has no GPU"));
  place.launcher = "Slurm";
  EXPECT_EQ(device_index(place, 1), 0);
}

}  // namespace
}  // namespace llava::dist
