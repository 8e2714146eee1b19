// Runs a scenario in several processes: this very program again, once per rank, each with a time
// limit. Nothing is left running.
#pragma once

#include "llava/base/check.h"
#include "llava/dist/process_group.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

extern char** environ;

namespace llava::support {

struct Outcome {
  int code = 0;     // exit code, or 128 + signal
  std::string out;  // stdout
  std::string err;
};

struct Run {
  std::string scenario;
  int ranks = 2;
  std::map<std::string, std::string> environment = {};
  double limit_seconds = 60;
  int port = 0;     // 0: a free one
  int absent = -1;  // a rank that is not started
  int stuck = -1;   // a rank that is killed when the others have ended
};

struct Child {
  pid_t pid = -1;
  int out = -1, err = -1;
};

/// This program again, as one rank.
inline Child start(const Run& run, int rank, int port) {
  std::map<std::string, std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string pair = *entry;
    const auto equals = pair.find('=');
    environment[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  environment.insert_or_assign("RANK", std::to_string(rank));
  environment.insert_or_assign("LOCAL_RANK", std::to_string(rank));
  environment.insert_or_assign("WORLD_SIZE", std::to_string(run.ranks));
  environment.insert_or_assign("MASTER_ADDR", "127.0.0.1");
  environment.insert_or_assign("MASTER_PORT", std::to_string(port));
  environment.insert_or_assign("OMP_NUM_THREADS", "1");
  for (const auto& [name, value] : run.environment) environment.insert_or_assign(name, value);

  std::vector<std::string> entries;
  for (const auto& [name, value] : environment) entries.push_back(name + "=" + value);
  std::vector<char*> pointers;
  for (auto& entry : entries) pointers.push_back(entry.data());
  pointers.push_back(nullptr);
  std::string program = "/proc/self/exe", filter = "--gtest_filter=Rank.DISABLED_" + run.scenario,
              also = "--gtest_also_run_disabled_tests";
  char* arguments[] = {program.data(), filter.data(), also.data(), nullptr};

  int out[2], err[2];
  expect(::pipe2(out, O_CLOEXEC) == 0 && ::pipe2(err, O_CLOEXEC) == 0, Fault::failure, "no pipes");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  ::posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  Child child;
  const int error =
      ::posix_spawn(&child.pid, program.c_str(), &actions, nullptr, arguments, pointers.data());
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(out[1]);
  ::close(err[1]);
  expect(error == 0, Fault::failure, "cannot start a rank");
  child.out = out[0];
  child.err = err[0];
  return child;
}

/// Reads what all ranks say until they close their ends or the time is over.
inline void collect(const Run& run, std::vector<Child>& children, std::vector<Outcome>& outcomes) {
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(run.limit_seconds);
  for (;;) {
    std::vector<pollfd> ends;
    std::vector<std::string*> texts;
    std::vector<int*> owners;
    bool others_run = false;
    for (std::size_t i = 0; i < children.size(); ++i) {
      for (auto [end, text] : {std::pair{&children[i].out, &outcomes[i].out},
                               std::pair{&children[i].err, &outcomes[i].err}}) {
        if (*end < 0) continue;
        ends.push_back({*end, POLLIN, 0});
        texts.push_back(text);
        owners.push_back(end);
        others_run |= static_cast<int>(i) != run.stuck;
      }
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                          until - std::chrono::steady_clock::now())
                          .count();
    if (!others_run || left <= 0) break;
    ::poll(ends.data(), ends.size(), static_cast<int>(left));
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (ends[i].revents == 0) continue;
      char bytes[4096];
      const auto got = ::read(ends[i].fd, bytes, sizeof(bytes));
      if (got > 0) {
        texts[i]->append(bytes, static_cast<std::size_t>(got));
      } else {
        ::close(ends[i].fd);
        *owners[i] = -1;
      }
    }
  }
}

inline int code_of(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/// A port nobody listens on.
inline int free_port() {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool ok = ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                  ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  ::close(descriptor);
  expect(ok, Fault::failure, "no free port");
  return ntohs(address.sin_port);
}

/// Outcomes by rank. A process that outlives the limit is killed and has code 137.
inline std::vector<Outcome> run_ranks(const Run& run) {
  const int port = run.port ? run.port : free_port();
  std::vector<Child> children;
  for (int rank = 0; rank < run.ranks; ++rank)
    children.push_back(rank == run.absent ? Child{} : start(run, rank, port));
  std::vector<Outcome> outcomes(children.size());
  collect(run, children, outcomes);
  for (std::size_t i = 0; i < children.size(); ++i) {
    auto& child = children[i];
    if (child.pid < 0) continue;
    const bool late = child.out >= 0 || child.err >= 0;
    if (late) ::kill(child.pid, SIGKILL);
    int status = 0;
    ::waitpid(child.pid, &status, 0);
    outcomes[i].code = code_of(status);
    for (const int end : {child.out, child.err})
      if (end >= 0) ::close(end);
  }
  return outcomes;
}

/// An environment variable, or `otherwise`.
inline double number(const char* name, double otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atof(value) : otherwise;
}

inline std::string text(const char* name, const std::string& otherwise = "") {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

/// The group of this process, from the environment that run_ranks made.
inline dist::GroupConfig group_config() {
  dist::GroupConfig config;
  config.dist_timeout = number("LLAVA_TEST_TIMEOUT", 30);
  config.dist_link_speed = number("LLAVA_TEST_LINK", 0);
  config.dist_check_steps = static_cast<std::int64_t>(number("LLAVA_TEST_CHECK_STEPS", 3));
  return config;
}

/// The body of a test "Rank.DISABLED_<scenario>", which run_ranks runs in every rank: does the part
/// and ends the process with its result; errors end it as they end the program.
[[noreturn]] inline void play(const std::function<int()>& part) {
  if (!std::getenv("LLAVA_LAUNCHER_PID")) ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // else launch() does
  int code = 1;
  try {
    code = part();
  } catch (const Error& error) {
    std::fprintf(stderr, "llava: %s\n", error.what());
    code = static_cast<int>(error.fault());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "unexpected: %s\n", error.what());
  }
  std::exit(code);
}

}  // namespace llava::support
