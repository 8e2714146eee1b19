#include "llava/dist/process_group.h"

#include "llava/base/check.h"
#include "support/expect_error.h"
#include "support/ranks.h"

#include <gmock/gmock.h>

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>

namespace llava::dist {
namespace {

using support::run_ranks;
using ::testing::HasSubstr;

torch::Tensor row(std::vector<float> values) { return torch::tensor(values); }

/// Ends the process as a failed test would.
void require(bool ok, const std::string& what) { expect(ok, Fault::verification, what); }

TEST(ProcessGroup, AloneReturnsItsInput) {
  const ProcessGroup group;
  const auto values = row({1, 2, 3});
  group.all_reduce(values, "values").wait();
  EXPECT_TRUE(values.equal(row({1, 2, 3})));
  const auto output = torch::zeros({3});
  group.all_gather(output, values, "values").wait();
  EXPECT_TRUE(output.equal(values));
  output.zero_();
  group.reduce_scatter(output, values, "values").wait();
  EXPECT_TRUE(output.equal(values));
  EXPECT_TRUE(group.sum(values).equal(values));
  EXPECT_TRUE(group.any(true));
  EXPECT_FALSE(group.any(false));
  EXPECT_EQ(group.all_gather_text("a", "texts"), std::vector<std::string>{"a"});
  group.expect_same("settings", "settings");
  group.barrier("end");
  EXPECT_EQ(group.traffic().bytes, 0);
}

TEST(Rank, DISABLED_Collectives) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    const auto n = group.world_size(), rank = group.rank();
    const auto mine = torch::full({2}, static_cast<double>(rank + 1), torch::kFloat32);

    const auto total = static_cast<float>(n * (n + 1)) / 2;
    require(group.sum(mine).equal(row({total, total})), "sum");
    group.all_reduce(mine, "maximum", Reduce::max).wait();
    require(mine.equal(row({static_cast<float>(n), static_cast<float>(n)})), "maximum");

    auto all = torch::zeros({n * 2});
    group.all_gather(all, torch::full({2}, static_cast<double>(rank), torch::kFloat32), "all")
        .wait();
    for (std::int64_t i = 0; i < n; ++i)
      require(all[2 * i + 1].item<float>() == static_cast<float>(i), "all_gather");
    const auto own = all.narrow(0, rank * 2, 2);
    own.fill_(static_cast<double>(10 + rank));
    group.all_gather(all, own, "all in place").wait();
    for (std::int64_t i = 0; i < n; ++i)
      require(all[2 * i].item<float>() == static_cast<float>(10 + i), "all_gather in place");

    const auto parts = torch::arange(n * 3, torch::kFloat32) * static_cast<double>(rank + 1);
    const auto part = parts.narrow(0, rank * 3, 3);
    group.reduce_scatter(part, parts, "parts").wait();
    const auto first = static_cast<float>(rank * 3) * total;
    require(part.equal(row({first, first + total, first + 2 * total})), "reduce_scatter in place");

    const auto half = torch::full({3}, 1.5, torch::kBFloat16);
    group.all_reduce(half, "bf16").wait();
    require(half.equal(torch::full({3}, 1.5 * static_cast<double>(n), torch::kBFloat16)), "bf16");

    const auto from_last = torch::full({1}, rank, torch::kInt64);
    group.broadcast(from_last, "last", n - 1).wait();
    require(from_last.item<std::int64_t>() == n - 1, "broadcast");

    require(group.any(rank == n - 1) && !group.any(false), "any");
    require(group.max(static_cast<double>(rank)) == static_cast<double>(n - 1), "max");
    const auto texts = group.all_gather_text(std::string(static_cast<std::size_t>(rank), 'x'), "x");
    for (std::int64_t i = 0; i < n; ++i)
      require(texts[static_cast<std::size_t>(i)] == std::string(static_cast<std::size_t>(i), 'x'),
              "all_gather_text");
    group.expect_same("learning_rate 1e-3\nseed 42", "settings");
    group.barrier("end");
    return 0;
  });
}

TEST(ProcessGroup, FourRanksExchange) {
  for (const auto& rank : run_ranks({.scenario = "Collectives", .ranks = 4}))
    EXPECT_EQ(rank.code, 0) << rank.err;
}

TEST(Rank, DISABLED_CountsBytes) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    const auto values = torch::ones({1000});  // 4,000 bytes
    group.all_reduce(values, "values").wait();
    require(group.traffic().bytes == 2 * 4000 * 3 / 4, "ring all-reduce: 2 S (n-1)/n");
    group.reduce_scatter(values.narrow(0, 0, 250).clone(), values, "values").wait();
    require(group.traffic().bytes == 3 * 4000 * 3 / 4, "ring reduce-scatter: S (n-1)/n");
    group.all_gather(values, values.narrow(0, 0, 250).clone(), "values").wait();
    require(group.traffic().bytes == 4 * 4000 * 3 / 4, "ring all-gather: S (n-1)/n");
    return 0;
  });
}

TEST(ProcessGroup, CountsTheBytesOfRingAlgorithms) {
  for (const auto& rank : run_ranks({.scenario = "CountsBytes", .ranks = 4}))
    EXPECT_EQ(rank.code, 0) << rank.err;
}

TEST(Rank, DISABLED_DifferentSettings) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    group.expect_same(group.rank() == 2 ? "a 1\nb 3\nc" : "a 1\nb 2\nc", "settings");
    return 0;
  });
}

TEST(ProcessGroup, RanksWithDifferentSettingsAreNamed) {
  for (const auto& rank : run_ranks({.scenario = "DifferentSettings", .ranks = 4})) {
    EXPECT_EQ(rank.code, 2);
    EXPECT_THAT(rank.err, HasSubstr("ranks 0 and 2 disagree about settings: rank 0 has b 2, rank 2 "
                                    "has b 3"));
  }
}

TEST(Rank, DISABLED_DifferentCollectives) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    group.note(1);
    const auto values = torch::ones({group.rank() == 1 ? 5 : 6});
    group.all_reduce(values, "gradients").wait();
    return 0;
  });
}

TEST(ProcessGroup, RanksInDifferentCollectivesAreNamed) {
  for (const auto& rank : run_ranks({.scenario = "DifferentCollectives", .ranks = 3})) {
    EXPECT_EQ(rank.code, 5);
    EXPECT_THAT(rank.err, HasSubstr("in step 1 rank 0 enters all_reduce of gradients of 6 Float, "
                                    "rank 1 enters all_reduce of gradients of 5 Float"));
  }
}

TEST(Rank, DISABLED_OneIsKilled) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    for (int step = 1;; ++step) {
      group.note(step, "sample-" + std::to_string(group.rank()));
      if (step == 6 && group.rank() == support::number("LLAVA_TEST_VICTIM", 0)) {
        // Long enough for its watcher to tell what it is at.
        ::usleep(static_cast<useconds_t>(support::number("LLAVA_TEST_LINGER", 0) * 1e6));
        ::kill(::getpid(), static_cast<int>(support::number("LLAVA_TEST_SIGNAL", SIGKILL)));
      }
      group.sum(torch::ones({8}), "gradients of layers.3");
    }
    return 0;
  });
}

void expect_victim_named(int victim) {
  const auto begin = std::chrono::steady_clock::now();
  const auto ranks = run_ranks({.scenario = "OneIsKilled",
                                .ranks = 3,
                                .environment = {{"LLAVA_TEST_VICTIM", std::to_string(victim)}}});
  // Reported long before the timeout of 30 s.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  for (int i = 0; i < 3; ++i) {
    const auto& rank = ranks[static_cast<std::size_t>(i)];
    if (i == victim) {
      EXPECT_EQ(rank.code, 128 + SIGKILL);
      continue;
    }
    EXPECT_EQ(rank.code, 5);
    EXPECT_THAT(rank.err, HasSubstr("rank " + std::to_string(i) +
                                    " of 3: all_reduce of gradients of layers.3 failed in step 6 "
                                    "(samples sample-" +
                                    std::to_string(i) + "): rank " + std::to_string(victim) +
                                    " did not answer"));
  }
}

TEST(ProcessGroup, KilledRankIsNamedByTheOthers) { expect_victim_named(1); }
TEST(ProcessGroup, KilledRankZeroIsNamedByTheOthers) { expect_victim_named(0); }

TEST(ProcessGroup, StoppedRankIsNamedAtTheTimeout) {
  const auto ranks = run_ranks({.scenario = "OneIsKilled",
                                .ranks = 3,
                                .environment = {{"LLAVA_TEST_VICTIM", "2"},
                                                {"LLAVA_TEST_SIGNAL", std::to_string(SIGSTOP)},
                                                {"LLAVA_TEST_LINGER", "0.7"},
                                                {"LLAVA_TEST_TIMEOUT", "1"}},
                                .stuck = 2});
  for (const int i : {0, 1}) {
    EXPECT_EQ(ranks[static_cast<std::size_t>(i)].code, 5);
    EXPECT_THAT(ranks[static_cast<std::size_t>(i)].err,
                HasSubstr("gradients of layers.3 failed in step 6"));
    EXPECT_THAT(ranks[static_cast<std::size_t>(i)].err,
                HasSubstr("rank 2 did not answer: ended, killed or stopped, last seen in step 6 "
                          "(samples sample-2) after all_reduce of gradients of layers.3"));
  }
}

TEST(Rank, DISABLED_OneGoesAstray) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    group.note(4, "sample-" + std::to_string(group.rank()));
    group.sum(torch::ones({1}), "loss");
    if (group.rank() == 1) ::pause();  // busy with something else for ever
    group.sum(torch::ones({1}), "gradient norm");
    return 0;
  });
}

TEST(ProcessGroup, RankThatComputesForEverSaysWhere) {
  const auto ranks = run_ranks({.scenario = "OneGoesAstray",
                                .ranks = 2,
                                .environment = {{"LLAVA_TEST_TIMEOUT", "1"}},
                                .stuck = 1});
  EXPECT_EQ(ranks[0].code, 5);
  EXPECT_THAT(ranks[0].err, HasSubstr("all_reduce of gradient norm failed in step 4 (samples "
                                      "sample-0): rank 1 is in step 4 (samples sample-1) after "
                                      "all_reduce of loss"));
}

TEST(Rank, DISABLED_OneLeaves) {
  support::play([] {
    const ProcessGroup group(support::group_config(), place_from_environment());
    group.note(2);
    try {
      if (group.rank() == 1) fail(Fault::data, "images/7.jpg: not a picture");
      group.sum(torch::ones({1}), "loss");
    } catch (const Error& error) {
      if (error.fault() != Fault::peer) group.leave_because(error.what());
      throw;
    }
    return 0;
  });
}

TEST(ProcessGroup, ReasonOfTheRankThatLeftReachesTheOthers) {
  const auto ranks = run_ranks({.scenario = "OneLeaves", .ranks = 2});
  EXPECT_EQ(ranks[0].code, 5);
  EXPECT_EQ(ranks[1].code, 3);
  EXPECT_THAT(ranks[0].err, HasSubstr("rank 1 stopped: images/7.jpg: not a picture"));
}

TEST(ProcessGroup, RankThatNeverComesIsNamed) {
  const auto ranks = run_ranks({.scenario = "Collectives",
                                .ranks = 3,
                                .environment = {{"LLAVA_TEST_TIMEOUT", "1"}},
                                .limit_seconds = 20,
                                .absent = 1});
  for (const std::size_t i : {0U, 2U}) {
    EXPECT_EQ(ranks[i].code, 5);
    EXPECT_THAT(ranks[i].err, HasSubstr("rank 1 did not come to 127.0.0.1:"));
  }
}

TEST(ProcessGroup, PortInUseIsNamed) {
  const int descriptor = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  ASSERT_EQ(::bind(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(descriptor, 1), 0);
  socklen_t size = sizeof(address);
  ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  const int port = ntohs(address.sin6_port);
  const auto ranks = run_ranks(
      {.scenario = "Collectives", .ranks = 1, .environment = {{"WORLD_SIZE", "2"}}, .port = port});
  ::close(descriptor);
  EXPECT_EQ(ranks[0].code, 2);
  EXPECT_THAT(ranks[0].err, HasSubstr("port " + std::to_string(port) +
                                      " of this machine is in "
                                      "use"));
}

TEST(ProcessGroup, WrongAddressIsNamed) {
  const auto nobody = run_ranks({.scenario = "Collectives",
                                 .ranks = 2,
                                 .environment = {{"LLAVA_TEST_TIMEOUT", "1"}},
                                 .limit_seconds = 20,
                                 .absent = 0});
  EXPECT_EQ(nobody[1].code, 5);
  EXPECT_THAT(nobody[1].err, HasSubstr("nobody answers at 127.0.0.1:"));
  const auto unknown = run_ranks({.scenario = "Collectives",
                                  .ranks = 2,
                                  .environment = {{"MASTER_ADDR", "no-such-host.invalid"}},
                                  .limit_seconds = 20,
                                  .absent = 0});
  EXPECT_EQ(unknown[1].code, 2);
  EXPECT_THAT(unknown[1].err, HasSubstr("MASTER_ADDR \"no-such-host.invalid\" is no known host"));
}

TEST(Rank, DISABLED_HidesDelay) {
  support::play([] {
    auto config = support::group_config();
    config.dist_link_speed = 0.01;  // 10 MB/s
    const ProcessGroup group(config, place_from_environment());
    group.note(100);
    const auto begin = std::chrono::steady_clock::now();
    auto first = group.all_reduce(torch::ones({250000}), "first");    // 1 MB sent by two ranks
    auto second = group.all_reduce(torch::ones({250000}), "second");  // behind it on the link
    first.wait();
    second.wait();
    const auto took = std::chrono::steady_clock::now() - begin;
    require(took >= std::chrono::milliseconds(199), "two transfers of 0.1 s share the link");
    require(std::abs(group.traffic().link_seconds - 0.2) < 1e-9, "link seconds");
    return 0;
  });
}

TEST(ProcessGroup, PretendedLinkDelaysExchanges) {
  for (const auto& rank : run_ranks({.scenario = "HidesDelay"}))
    EXPECT_EQ(rank.code, 0) << rank.err;
}

// ── Places ──────────────────────────────────────────────────────────────────────────────────────

/// Environment variables that launchers set, unset but for the given ones.
class Environment {
 public:
  explicit Environment(std::initializer_list<std::pair<const char*, const char*>> given = {}) {
    for (const char* name : {"RANK",
                             "WORLD_SIZE",
                             "LOCAL_RANK",
                             "LOCAL_WORLD_SIZE",
                             "MASTER_ADDR",
                             "MASTER_PORT",
                             "TORCHELASTIC_USE_AGENT_STORE",
                             "TORCHELASTIC_RESTART_COUNT",
                             "OMPI_COMM_WORLD_RANK",
                             "OMPI_COMM_WORLD_SIZE",
                             "OMPI_COMM_WORLD_LOCAL_RANK",
                             "OMPI_COMM_WORLD_LOCAL_SIZE",
                             "PMIX_NAMESPACE",
                             "PMI_RANK",
                             "PMI_SIZE",
                             "SLURM_PROCID",
                             "SLURM_LOCALID",
                             "SLURM_STEP_NUM_TASKS",
                             "SLURM_STEP_TASKS_PER_NODE",
                             "SLURM_NODEID",
                             "SLURM_JOB_NODELIST",
                             "SLURM_JOB_ID",
                             "SLURM_STEP_ID",
                             "SLURM_NTASKS"}) {
      if (const char* value = std::getenv(name)) before_[name] = value;
      ::unsetenv(name);
      names_.push_back(name);
    }
    for (const auto& [name, value] : given) ::setenv(name, value, 1);
  }
  ~Environment() {
    for (const auto& name : names_) ::unsetenv(name.c_str());
    for (const auto& [name, value] : before_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::map<std::string, std::string> before_;
  std::vector<std::string> names_;
};

TEST(Place, AloneWithoutALauncher) {
  const Environment environment;
  EXPECT_EQ(place_from_environment().world_size, 1);
}

TEST(Place, BatchScriptOfSlurmIsAlone) {
  const Environment environment({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}});
  EXPECT_EQ(place_from_environment().world_size, 1);
}

TEST(Place, ReadsTorchrun) {
  const Environment environment({{"RANK", "5"},
                                 {"WORLD_SIZE", "16"},
                                 {"LOCAL_RANK", "1"},
                                 {"LOCAL_WORLD_SIZE", "4"},
                                 {"MASTER_ADDR", "node7"},
                                 {"MASTER_PORT", "1234"},
                                 {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                 {"TORCHELASTIC_RESTART_COUNT", "2"}});
  const auto place = place_from_environment();
  EXPECT_EQ(place.rank, 5);
  EXPECT_EQ(place.world_size, 16);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.local_world_size, 4);
  EXPECT_EQ(place.master_addr, "node7");
  EXPECT_EQ(place.master_port, 1234);
  EXPECT_TRUE(place.agent_store);
  EXPECT_EQ(place.attempt, "2");
}

TEST(Place, ReadsOpenMpi) {
  const Environment environment({{"OMPI_COMM_WORLD_RANK", "1"},
                                 {"OMPI_COMM_WORLD_SIZE", "2"},
                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  const auto place = place_from_environment();
  EXPECT_EQ(place.rank, 1);
  EXPECT_EQ(place.world_size, 2);
  EXPECT_EQ(place.master_addr, "127.0.0.1");
  EXPECT_EQ(place.master_port, 29500);
}

TEST(Place, OpenMpiOverMachinesNeedsAnAddress) {
  const Environment environment({{"OMPI_COMM_WORLD_RANK", "1"},
                                 {"OMPI_COMM_WORLD_SIZE", "2"},
                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}});
  EXPECT_THAT(support::error_of(Fault::usage, [&] { place_from_environment(); }),
              HasSubstr("MASTER_ADDR is not set"));
}

TEST(Place, ReadsSlurm) {
  const Environment environment({{"SLURM_PROCID", "9"},
                                 {"SLURM_STEP_NUM_TASKS", "10"},
                                 {"SLURM_LOCALID", "1"},
                                 {"SLURM_NODEID", "2"},
                                 {"SLURM_STEP_TASKS_PER_NODE", "4(x2),2"},
                                 {"SLURM_JOB_NODELIST", "gpu[007-008,11],other"},
                                 {"SLURM_JOB_ID", "77"}});
  const auto place = place_from_environment();
  EXPECT_EQ(place.rank, 9);
  EXPECT_EQ(place.local_world_size, 2);
  EXPECT_EQ(place.master_addr, "gpu007");
  EXPECT_GE(place.master_port, 15000);
  EXPECT_LT(place.master_port, 25000);
}

TEST(Place, MalformedVariablesAreNamed) {
  {
    const Environment environment({{"RANK", "1"}});
    EXPECT_THAT(support::error_of(Fault::usage, [&] { place_from_environment(); }),
                HasSubstr("WORLD_SIZE is missing while RANK is set"));
  }
  {
    const Environment environment({{"RANK", "one"}, {"WORLD_SIZE", "2"}});
    EXPECT_THAT(support::error_of(Fault::usage, [&] { place_from_environment(); }),
                HasSubstr("RANK is \"one\""));
  }
  {
    const Environment environment({{"RANK", "2"}, {"WORLD_SIZE", "2"}});
    EXPECT_THAT(support::error_of(Fault::usage, [&] { place_from_environment(); }),
                HasSubstr("rank 2 of 2 processes does not exist"));
  }
}

TEST(GroupConfig, NonsenseIsRefused) {
  EXPECT_THAT(support::error_of(Fault::usage, [&] { check(GroupConfig{.dist_backend = "mpi"}); }),
              HasSubstr("dist_backend is \"mpi\""));
  EXPECT_THAT(support::error_of(Fault::usage, [&] { check(GroupConfig{.dist_timeout = 0}); }),
              HasSubstr("dist_timeout"));
  Place two;
  two.world_size = 2;
  EXPECT_THAT(support::error_of(Fault::usage,
                                [&] { ProcessGroup(GroupConfig{.dist_backend = "nccl"}, two); }),
              HasSubstr("nccl needs GPUs"));
}

}  // namespace
}  // namespace llava::dist
