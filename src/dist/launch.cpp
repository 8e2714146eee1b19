#include "llava/dist/launch.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "llava/base/log.h"
#include "rendezvous.h"

#include <arpa/inet.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern char** environ;

namespace llava::dist {
namespace {

constexpr auto kGrace = std::chrono::seconds(10);    // after a failure
constexpr auto kSaving = std::chrono::seconds(600);  // after one stopped on a signal
constexpr const char* kLauncher = "LLAVA_LAUNCHER_PID";
constexpr int kForwarded[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};

struct Child {
  pid_t pid = 0;
  std::int64_t rank = 0;
};

/// A listening socket on a free port of this machine, which rank 0 inherits: nobody can take the
/// port between choosing and using it.
struct Listener {
  Listener() {
    descriptor = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int off = 0;
    if (descriptor >= 0) ::setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    if (descriptor < 0 || !bind_to(reinterpret_cast<sockaddr*>(&any), sizeof(any))) {
      if (descriptor >= 0) ::close(descriptor);  // a machine without IPv6
      descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in any4{};
      any4.sin_family = AF_INET;
      expect(descriptor >= 0 && bind_to(reinterpret_cast<sockaddr*>(&any4), sizeof(any4)),
             Fault::failure,
             "cannot open a port for the processes to meet at: ", std::strerror(errno));
    }
  }
  ~Listener() { ::close(descriptor); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  bool bind_to(sockaddr* address, socklen_t size) {
    if (::bind(descriptor, address, size) != 0 || ::listen(descriptor, SOMAXCONN) != 0)
      return false;
    sockaddr_in6 bound{};
    socklen_t bound_size = sizeof(bound);
    if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&bound), &bound_size) != 0)
      return false;
    port = ntohs(bound.sin6_port);  // at the same place in both kinds of address
    return true;
  }

  int descriptor = -1, port = 0;
};

/// This process's arguments.
std::vector<std::string> own_words() {
  std::vector<std::string> words;
  std::string word;
  std::FILE* file = std::fopen("/proc/self/cmdline", "r");
  expect(file != nullptr, Fault::failure, "/proc/self/cmdline cannot be read; is /proc mounted?");
  for (int byte; (byte = std::fgetc(file)) != EOF;) {
    if (byte != '\0') {
      word.push_back(static_cast<char>(byte));
    } else {
      words.push_back(std::exchange(word, {}));
    }
  }
  std::fclose(file);
  return words;
}

std::int64_t own_cores() {
  cpu_set_t cores;
  return ::sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (auto& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

class Children {
 public:
  Children(std::int64_t count, const Listener& listener) : count_(count), listener_(listener) {
    sigset_t waited;
    ::sigemptyset(&waited);
    ::sigaddset(&waited, SIGCHLD);
    for (const int signal : kForwarded) ::sigaddset(&waited, signal);
    ::sigprocmask(SIG_BLOCK, &waited, &mask_before_);
    waited_ = waited;
    for (std::int64_t rank = 0; rank < count; ++rank) start(rank);
  }

  ~Children() {
    kill_all(SIGKILL);
    for (const auto& child : running_) ::waitpid(child.pid, nullptr, 0);
    ::sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  /// Until all have ended.
  int wait() {
    using Clock = std::chrono::steady_clock;
    Clock::time_point until = Clock::time_point::max();
    while (!running_.empty()) {
      const timespec tick{1, 0};
      const int signal = ::sigtimedwait(&waited_, nullptr, &tick);
      if (signal > 0 && signal != SIGCHLD) kill_all(signal);
      const bool failed_before = code_ != 0;
      reap();
      if (!failed_before && code_ != 0)
        until = Clock::now() + (code_ == static_cast<int>(Fault::stopped) ? kSaving : kGrace);
      if (Clock::now() < until) continue;
      log::warn("ending ", running_.size(), " processes that are still running");
      kill_all(SIGKILL);
      until = Clock::time_point::max();
    }
    return code_;
  }

 private:
  void start(std::int64_t rank) {
    std::vector<std::string> environment;
    const auto threads = std::to_string(std::max<std::int64_t>(1, own_cores() / count_));
    const std::pair<const char*, std::string> settings[] = {
        {"RANK", std::to_string(rank)},
        {"LOCAL_RANK", std::to_string(rank)},
        {"WORLD_SIZE", std::to_string(count_)},
        {"LOCAL_WORLD_SIZE", std::to_string(count_)},
        {"MASTER_ADDR", "127.0.0.1"},
        {"MASTER_PORT", std::to_string(listener_.port)},
        {kListenDescriptor, rank == 0 ? std::to_string(listener_.descriptor) : ""},
        {kLauncher, std::to_string(::getpid())},
        {"OMP_NUM_THREADS",
         std::getenv("OMP_NUM_THREADS") ? std::getenv("OMP_NUM_THREADS") : threads},
    };
    for (const auto& [name, value] : settings)
      environment.push_back(std::string(name) + "=" + value);
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string text = *entry;
      const auto is_set = [&](const auto& setting) {
        return text.rfind(std::string(setting.first) + "=", 0) == 0;
      };
      if (std::none_of(std::begin(settings), std::end(settings), is_set))
        environment.push_back(text);
    }
    auto words = own_words();
    const auto arguments = pointers_to(words), entries = pointers_to(environment);

    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    // A group of their own: a terminal's Ctrl-C reaches this process alone, which passes it on
    // once.
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    ::posix_spawnattr_setpgroup(&attributes, group_);
    ::posix_spawnattr_setsigmask(&attributes, &mask_before_);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (rank == 0)  // onto itself: stays open over exec
      ::posix_spawn_file_actions_adddup2(&actions, listener_.descriptor, listener_.descriptor);
    Child child{0, rank};
    const int error = ::posix_spawn(&child.pid, "/proc/self/exe", &actions, &attributes,
                                    arguments.data(), entries.data());
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
    expect(error == 0, Fault::failure, "cannot start process ", rank, " of ", count_, ": ",
           std::strerror(error), "; lower --nproc_per_node");
    if (group_ == 0) group_ = child.pid;
    running_.push_back(child);
  }

  void reap() {
    for (auto child = running_.begin(); child != running_.end();) {
      int status = 0;
      if (::waitpid(child->pid, &status, WNOHANG) != child->pid) {
        ++child;
        continue;
      }
      int code = WIFEXITED(status) ? WEXITSTATUS(status) : static_cast<int>(Fault::peer);
      if (WIFSIGNALED(status) && (code_ == 0 || WTERMSIG(status) != SIGKILL))
        log::error("rank ", child->rank, " of ", count_, " (process ", child->pid,
                   ") was ended by signal ", WTERMSIG(status), " (", ::strsignal(WTERMSIG(status)),
                   ")", WTERMSIG(status) == SIGKILL ? "; did the machine run out of memory?" : "");
      // Code 5 is what follows from another's failure; that other's own code says more.
      if (code_ == 0 || (code_ == static_cast<int>(Fault::peer) && code != 0)) code_ = code;
      child = running_.erase(child);
    }
  }

  void kill_all(int signal) {
    if (!running_.empty()) ::kill(-group_, signal);
  }

  std::int64_t count_;
  const Listener& listener_;
  sigset_t mask_before_{}, waited_{};
  pid_t group_ = 0;  // of the children: the first one's id
  std::vector<Child> running_;
  int code_ = 0;
};

/// A rank goes when its launcher goes, even one that was killed.
void follow_launcher() {
  const char* launcher = std::getenv(kLauncher);
  if (launcher == nullptr) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != std::atoi(launcher))  // it went before the line above
    fail(Fault::peer, "the process that started this one has ended");
}

}  // namespace

void check(const LaunchConfig& config) {
  constexpr std::int64_t kMost = 1024;
  expect(config.nproc_per_node >= 0 && config.nproc_per_node <= kMost, Fault::usage,
         "--nproc_per_node is ", config.nproc_per_node, ", expected 0 to ", kMost);
}

void let_waiting_threads_sleep() {
  // Measured on two cores: 30,000 rounds cost 3 % of a small model's step on a quiet machine.
  constexpr const char *kRounds = "30000", *kVariable = "GOMP_SPINCOUNT";
  if (std::getenv(kVariable) || std::getenv("OMP_WAIT_POLICY")) return;
  ::setenv(kVariable, kRounds, 0);
  auto words = own_words();
  ::execv("/proc/self/exe", pointers_to(words).data());
  log::debug("cannot start over with ", kVariable, ": ", std::strerror(errno));
}

std::optional<int> launch(const LaunchConfig& config, std::int64_t devices) {
  check(config);
  const Place place = place_from_environment();
  if (!place.launcher.empty()) {
    follow_launcher();
    expect(config.nproc_per_node == 0 || std::getenv(kLauncher) ||
               config.nproc_per_node == place.local_world_size,
           Fault::usage, "--nproc_per_node is ", config.nproc_per_node, " but ", place.launcher,
           " started ", place.local_world_size, " processes on this machine; leave the option out");
    return std::nullopt;
  }
  const auto count =
      config.nproc_per_node > 0 ? config.nproc_per_node : std::max<std::int64_t>(1, devices);
  expect(devices == 0 || count <= devices, Fault::usage, "--nproc_per_node ", count,
         " needs as many GPUs, but ", devices, " can be seen; lower it, or take --device cpu");
  if (count == 1) return std::nullopt;
  log::info("starting ", count, " processes");
  const Listener listener;
  return Children(count, listener).wait();
}

std::int64_t device_index(const Place& place, std::int64_t visible) {
  // Slurm and MPI may show each process its own GPU only.
  const bool one_each =
      visible == 1 && (place.launcher == "Slurm" || place.launcher.ends_with("MPI"));
  if (one_each) return 0;
  expect(place.local_rank < visible, Fault::usage, "process ", place.local_rank, " of ",
         place.local_world_size, " on this machine has no GPU: ", visible,
         " can be seen; start as many processes as there are GPUs, or take --device cpu");
  return place.local_rank;
}

}  // namespace llava::dist
