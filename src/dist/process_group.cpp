#include "llava/dist/process_group.h"

#include "llava/base/check.h"
#include "llava/base/log.h"
#include "llava/base/plugin.h"
#include "nccl_plugin.h"
#include "rendezvous.h"

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <sstream>
#include <string_view>
#include <thread>

namespace llava::dist {
namespace {

using Clock = std::chrono::steady_clock;
using Work = c10::intrusive_ptr<c10d::Work>;

constexpr auto kWatchEvery = std::chrono::milliseconds(500);
constexpr auto kRollCall = std::chrono::milliseconds(2000);  // several rounds of the watchers
constexpr int kFatalOnly = 3;  // c10/util/logging_is_not_google_glog.h
constexpr auto kFarewell = std::chrono::milliseconds(10000);

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1e3));
}

/// FNV-1a: equal on every machine.
std::int64_t fingerprint(std::string_view text) {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const unsigned char byte : text) hash = (hash ^ byte) * 1099511628211ULL;
  std::int64_t value;
  std::memcpy(&value, &hash, sizeof(value));
  return value;
}

/// What Gloo and c10d say, without stack traces and source places.
std::string first_line(const std::string& text) {
  auto line = text.substr(0, text.find('\n'));
  if (const auto place = line.find("] "); line.rfind('[', 0) == 0 && place != std::string::npos)
    line.erase(0, place + 2);
  while (!line.empty() && (line.back() == ' ' || line.back() == '.')) line.pop_back();
  return line;
}

/// "rank 3", "ranks 1, 3".
std::string names(const std::vector<std::int64_t>& ranks) {
  std::ostringstream text;
  text << (ranks.size() == 1 ? "rank " : "ranks ");
  for (std::size_t i = 0; i < ranks.size(); ++i) text << (i ? ", " : "") << ranks[i];
  return text.str();
}

c10d::ReduceOp reduce_op(Reduce reduce) {
  switch (reduce) {
    case Reduce::max: return c10d::ReduceOp::MAX;
    case Reduce::min: return c10d::ReduceOp::MIN;
    case Reduce::sum: break;
  }
  return c10d::ReduceOp::SUM;
}

}  // namespace

void check(const GroupConfig& config) {
  expect(config.dist_backend == "auto" || config.dist_backend == "gloo" ||
             config.dist_backend == "nccl",
         Fault::usage, "dist_backend is \"", config.dist_backend,
         "\", expected auto, gloo or nccl");
  expect(config.dist_timeout > 0, Fault::usage, "dist_timeout must be positive seconds, got ",
         config.dist_timeout);
  expect(config.dist_check_steps >= 0, Fault::usage, "dist_check_steps must not be negative, got ",
         config.dist_check_steps);
  expect(config.dist_link_speed >= 0, Fault::usage, "dist_link_speed must not be negative, got ",
         config.dist_link_speed);
}

struct ProcessGroup::State : std::enable_shared_from_this<ProcessGroup::State> {
  GroupConfig config;
  Place place;
  torch::Device device = torch::kCPU;
  c10::intrusive_ptr<c10d::Store> store;         // this thread's connection
  c10::intrusive_ptr<c10d::Backend> gloo, nccl;  // absent when alone
  Traffic traffic;
  Clock::time_point link_free{};  // when the pretended link has sent all it was given
  std::int64_t step = 0;
  std::int64_t texts = 0;  // keys of expect_same
  bool failed = false;

  /// One collective on the GPU that the watcher waits for.
  struct OnDevice {
    Work work;
    std::string label;
    Clock::time_point since;
  };

  // What the watcher thread reads.
  std::mutex mutex;
  std::condition_variable wake;
  std::string where = "before step 1", samples, last = "none", reason;
  bool leaving = false;
  std::list<OnDevice> on_device;
  std::thread watcher;

  void join();
  void watch(const c10::intrusive_ptr<c10d::Store>& line);
  void answer_roll(const c10::intrusive_ptr<c10d::Store>& line);
  void watch_device(const c10::intrusive_ptr<c10d::Store>& line);
  std::string roll_call(const c10::intrusive_ptr<c10d::Store>& line);
  std::string failure(const std::string& label, const std::string& cause,
                      const c10::intrusive_ptr<c10d::Store>& line);
  [[noreturn]] void fail_peer(const std::string& label, const std::string& cause);
  void leave();
  std::string status();

  using Call = std::function<Work(c10d::Backend&, std::vector<torch::Tensor>&)>;
  Exchange start(const std::string& label, std::vector<torch::Tensor> tensors, double sent_bytes,
                 const Call& call);
  void compare_between_ranks(const std::string& label, const torch::Tensor& tensor);
  std::vector<std::int64_t> gather_numbers(std::int64_t mine);
};

struct Exchange::Pending {
  std::shared_ptr<ProcessGroup::State> group;
  Work work;
  std::string label;
  Clock::time_point due;              // not before, on the pretended link
  std::function<void()> finish = {};  // copies a result that travelled by the CPU back

  void wait() {
    const auto begin = Clock::now();
    try {
      work->wait();
    } catch (const std::exception& error) {
      group->fail_peer(label, error.what());
    }
    std::this_thread::sleep_until(due);
    if (finish) finish();
    group->traffic.waited_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
  }
};

Exchange::Exchange() = default;
Exchange::Exchange(std::unique_ptr<Pending> pending) : pending_(std::move(pending)) {}
Exchange::Exchange(Exchange&&) noexcept = default;
Exchange& Exchange::operator=(Exchange&&) noexcept = default;
Exchange::~Exchange() = default;

void Exchange::wait() {
  if (const auto pending = std::move(pending_)) pending->wait();
}

// ── Meeting and leaving ─────────────────────────────────────────────────────────────────────────

/// Waits until every rank has come.
static void call_ranks(c10d::Store& store, const Place& place, double seconds) {
  const auto key = [](std::int64_t rank) { return "came/" + std::to_string(rank); };
  expect(store.add(key(place.rank), 1) == 1, Fault::usage, "two processes call themselves rank ",
         place.rank, " of ", place.world_size,
         "; give each its own RANK, or a free MASTER_PORT if another run uses this one");
  const auto until = Clock::now() + milliseconds(seconds);
  std::vector<std::int64_t> absent;
  for (std::int64_t rank = 0; rank < place.world_size; ++rank) absent.push_back(rank);
  for (;;) {
    try {
      std::erase_if(absent, [&](std::int64_t rank) { return store.check({key(rank)}); });
    } catch (const std::exception&) {
      break;  // who keeps the store gave up first
    }
    if (absent.empty()) return;
    if (Clock::now() > until) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  fail(Fault::peer, "rank ", place.rank, " of ", place.world_size, ": ", names(absent),
       " did not come to ", place.master_addr, ":", place.master_port, " within ", seconds,
       " s; were all ", place.world_size, " processes started? See their messages");
}

void ProcessGroup::State::join() {
  check(config);
  // Our messages say all that people can use; c10d would add a stack trace to each.
  if (std::getenv("TORCH_CPP_LOG_LEVEL")) {
    c10::initLogging();
  } else {
    FLAGS_caffe2_log_level = kFatalOnly;
  }
  const bool wants_nccl =
      config.dist_backend == "nccl" || (config.dist_backend == "auto" && device.is_cuda());
  if (place.world_size == 1 && config.dist_backend != "nccl") return;
  expect(!wants_nccl || device.is_cuda(), Fault::usage,
         "dist_backend nccl needs GPUs, but this run is on the CPU; use gloo");

  c10::intrusive_ptr<c10d::Store> line;  // the watcher's own connection
  if (place.world_size == 1) {
    store = line = c10::make_intrusive<c10d::HashStore>();
  } else {
    store = open_store(place, config, /*may_serve=*/true);
    line = open_store(place, config, /*may_serve=*/false);
    call_ranks(*store, place, join_seconds(config));
  }
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(config.dist_timeout));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(own_address(place)));
    gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>("gloo", store), static_cast<int>(place.rank),
        static_cast<int>(place.world_size), options);
  } catch (const std::exception& error) {
    fail(Fault::peer, "rank ", place.rank, " of ", place.world_size,
         " cannot connect to the others (", first_line(error.what()),
         "); are the machines' ports open to each other?");
  }
  if (wants_nccl) {
    const auto make = reinterpret_cast<MakeNccl*>(plugin_symbol(kMakeNccl));
    make(c10::make_intrusive<c10d::PrefixStore>("nccl", store), static_cast<int>(place.rank),
         static_cast<int>(place.world_size), milliseconds(config.dist_timeout), device, nccl);
  }
  watcher = std::thread([this, line] { watch(line); });
}

void ProcessGroup::State::leave() {
  {
    const std::lock_guard lock(mutex);
    leaving = true;
  }
  wake.notify_all();
  if (watcher.joinable()) watcher.join();
  if (failed) {  // their destructors would wait for collectives that never end
    gloo.release();
    nccl.release();
    return;
  }
  if (nccl) nccl->shutdown();
  nccl.reset();
  gloo.reset();
  if (!store || place.world_size == 1) return;
  try {  // the store outlives those who use it
    store->add("left", 1);
    const auto until = Clock::now() + kFarewell;
    while (place.rank == 0 && !place.agent_store && store->add("left", 0) < place.world_size &&
           Clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  } catch (const std::exception& error) {
    log::debug("leaving: ", first_line(error.what()));
  }
}

// ── When another rank fails ─────────────────────────────────────────────────────────────────────
// A rank that fails in a collective sets "roll". The watchers of the living answer within a round
// with what their rank is at, even while it computes or waits in a collective of its own; who is
// dead or stopped does not answer, but has told every round under "at" what it was at.

std::string ProcessGroup::State::status() {
  const std::lock_guard lock(mutex);
  if (!reason.empty()) return "stopped: " + reason;
  return where + (samples.empty() ? "" : " (samples " + samples + ")") + " after " + last;
}

void ProcessGroup::State::answer_roll(const c10::intrusive_ptr<c10d::Store>& line) {
  line->set("roll/" + std::to_string(place.rank), status());
}

void ProcessGroup::State::watch(const c10::intrusive_ptr<c10d::Store>& line) {
  bool answered = false;
  std::string told;
  for (;;) {
    {
      std::unique_lock lock(mutex);
      wake.wait_for(lock, kWatchEvery, [&] { return leaving; });
      if (leaving) return;
    }
    try {
      if (const auto now = status(); !answered && now != told)
        line->set("at/" + std::to_string(place.rank), told = now);
      if (!answered && line->check({"roll"})) {
        answer_roll(line);
        answered = true;
      }
    } catch (const std::exception&) {
      answered = true;  // the store is gone; the next collective says so
    }
    watch_device(line);
  }
}

/// NCCL's collectives fail on no thread of ours: the watcher looks after them and, as nothing else
/// can stop a kernel that waits for a dead peer, ends the process.
void ProcessGroup::State::watch_device(const c10::intrusive_ptr<c10d::Store>& line) {
  std::string label, cause;
  {
    const std::lock_guard lock(mutex);
    while (!on_device.empty() && on_device.front().work->isCompleted() &&
           !on_device.front().work->exception())
      on_device.pop_front();
    if (on_device.empty()) return;
    const auto& oldest = on_device.front();
    label = oldest.label;
    if (const auto error = oldest.work->exception()) {
      try {
        std::rethrow_exception(error);
      } catch (const std::exception& exception) {
        cause = exception.what();
      }
    } else if (Clock::now() - oldest.since > milliseconds(config.dist_timeout)) {
      cause = "it did not end within " + std::to_string(config.dist_timeout) + " s";
    } else {
      return;
    }
  }
  log::error(failure(label, cause, line));
  ::_exit(static_cast<int>(Fault::peer));
}

/// Who is at fault, as far as the store can tell.
std::string ProcessGroup::State::roll_call(const c10::intrusive_ptr<c10d::Store>& line) {
  std::ostringstream found;
  try {
    answer_roll(line);
    line->set("roll", "called");
    std::vector<std::int64_t> silent;
    for (std::int64_t rank = 0; rank < place.world_size; ++rank) silent.push_back(rank);
    for (const auto until = Clock::now() + kRollCall; !silent.empty() && Clock::now() < until;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      std::erase_if(
          silent, [&](std::int64_t rank) { return line->check({"roll/" + std::to_string(rank)}); });
    }
    if (!silent.empty()) found << names(silent) << " did not answer: ended, killed or stopped";
    for (const auto rank : silent) {
      const auto key = "at/" + std::to_string(rank);
      if (line->check({key}))
        found << ", last seen " << (silent.size() > 1 ? "(rank " + std::to_string(rank) + ") " : "")
              << line->get_to_str(key);
    }
    for (std::int64_t rank = 0; rank < place.world_size; ++rank) {
      if (std::find(silent.begin(), silent.end(), rank) != silent.end()) continue;
      const auto text = line->get_to_str("roll/" + std::to_string(rank));
      const bool stopped = text.rfind("stopped: ", 0) == 0;
      if (stopped || (silent.empty() && rank != place.rank))
        found << (found.str().empty() ? "" : "; ") << "rank " << rank << (stopped ? " " : " is ")
              << text;
    }
    if (place.rank == 0 && !place.agent_store) {  // who asks may still be reading
      line->add("read", 1);
      const auto until = Clock::now() + std::chrono::seconds(1);
      const auto answers = place.world_size - static_cast<std::int64_t>(silent.size());
      while (line->add("read", 0) < answers && Clock::now() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    } else {
      line->add("read", 1);
    }
  } catch (const std::exception&) {
    found << (place.agent_store ? "the launcher" : "rank 0")
          << " did not answer: the store it keeps is gone";
  }
  return found.str();
}

std::string ProcessGroup::State::failure(const std::string& label, const std::string& cause,
                                         const c10::intrusive_ptr<c10d::Store>& line) {
  failed = true;
  const std::string roll = roll_call(line);
  const std::lock_guard lock(mutex);
  std::ostringstream text;
  text << "rank " << place.rank << " of " << place.world_size << ": " << label << " failed "
       << where << (samples.empty() ? "" : " (samples " + samples + ")") << ": " << roll << " ("
       << first_line(cause) << "); see the messages of the other ranks, then resume from the last "
       << "checkpoint";
  return text.str();
}

void ProcessGroup::State::fail_peer(const std::string& label, const std::string& cause) {
  throw Error(Fault::peer, failure(label, cause, store));
}

// ── Collectives ─────────────────────────────────────────────────────────────────────────────────

std::vector<std::int64_t> ProcessGroup::State::gather_numbers(std::int64_t mine) {
  auto input = std::vector<torch::Tensor>{torch::full({1}, mine, torch::kInt64)};
  auto output = torch::empty({place.world_size}, torch::kInt64);
  gloo->_allgather_base(output, input[0])->wait();
  return {output.data_ptr<std::int64_t>(), output.data_ptr<std::int64_t>() + place.world_size};
}

/// A collective that another rank does not enter as well would wait for ever or, worse, mix sums.
void ProcessGroup::State::compare_between_ranks(const std::string& label,
                                                const torch::Tensor& tensor) {
  std::ostringstream text;
  text << label << " of " << tensor.numel() << " " << tensor.scalar_type();
  std::vector<std::int64_t> all;
  try {
    all = gather_numbers(fingerprint(text.str()));
  } catch (const std::exception& error) {
    fail_peer(label, error.what());
  }
  if (std::count(all.begin(), all.end(), all[0]) == place.world_size) return;
  failed = true;
  const auto key = [](std::int64_t rank) { return "enters/" + std::to_string(rank); };
  store->set(key(place.rank), text.str());
  const auto odd = std::find_if(all.begin(), all.end(), [&](auto v) { return v != all[0]; });
  const auto other = static_cast<std::int64_t>(odd - all.begin());
  fail(Fault::peer, "rank ", place.rank, " of ", place.world_size, ": ", where, " rank 0 enters ",
       store->get_to_str(key(0)), ", rank ", other, " enters ", store->get_to_str(key(other)),
       "; the ranks have different parts to train or different files");
}

/// Starts a collective on `tensors`, or does nothing when alone.
Exchange ProcessGroup::State::start(const std::string& label, std::vector<torch::Tensor> tensors,
                                    double sent_bytes, const Call& call) {
  if (!gloo) return {};
  const auto& first = tensors.front();
  if (place.world_size > 1 && step <= config.dist_check_steps) compare_between_ranks(label, first);
  auto pending = std::make_unique<Exchange::Pending>();
  const bool by_cpu = first.is_cuda() && !nccl;
  if (by_cpu) {
    const auto originals = tensors;
    for (auto& tensor : tensors) tensor = tensor.cpu();
    pending->finish = [originals, tensors] {
      for (std::size_t i = 0; i < tensors.size(); ++i) originals[i].copy_(tensors[i]);
    };
  }
  const bool on_gpu = first.is_cuda() && nccl;
  {
    const std::lock_guard lock(mutex);
    last = label;
  }
  try {
    pending->work = call(on_gpu ? *nccl : *gloo, tensors);
  } catch (const std::exception& error) {
    fail_peer(label, error.what());
  }
  if (on_gpu) {
    const std::lock_guard lock(mutex);
    on_device.push_back({pending->work, label, Clock::now()});
  }
  traffic.bytes += static_cast<std::int64_t>(sent_bytes);
  traffic.collectives += 1;
  if (config.dist_link_speed > 0) {
    const double seconds = sent_bytes / (config.dist_link_speed * 1e9);
    link_free = std::max(link_free, Clock::now()) +
                std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    pending->due = link_free;
    traffic.link_seconds += seconds;
  }
  pending->group = shared_from_this();
  pending->label = label;
  return Exchange(std::move(pending));
}

ProcessGroup::ProcessGroup() : state_(std::make_shared<State>()) {}

ProcessGroup::ProcessGroup(const GroupConfig& config, const Place& place, torch::Device device)
    : state_(std::make_shared<State>()) {
  state_->config = config;
  state_->place = place;
  state_->device = device;
  log::set_rank(place.rank, place.world_size);
  // A rank that dies closes its sockets: for the others that is a failed write, not their death.
  struct sigaction action {};
  const bool is_default =
      ::sigaction(SIGPIPE, nullptr, &action) == 0 && action.sa_handler == SIG_DFL;
  if (place.world_size > 1 && is_default) std::signal(SIGPIPE, SIG_IGN);
  try {
    state_->join();
  } catch (...) {
    state_->failed = true;
    state_->leave();
    throw;
  }
}

ProcessGroup::~ProcessGroup() { state_->leave(); }

std::int64_t ProcessGroup::rank() const { return state_->place.rank; }
std::int64_t ProcessGroup::world_size() const { return state_->place.world_size; }
const Place& ProcessGroup::place() const { return state_->place; }
const Traffic& ProcessGroup::traffic() const { return state_->traffic; }

void ProcessGroup::note(std::int64_t step, const std::string& samples) const {
  const std::lock_guard lock(state_->mutex);
  state_->step = step;
  state_->where = "in step " + std::to_string(step);
  state_->samples = samples;
}

void ProcessGroup::leave_because(const std::string& reason) const noexcept {
  if (world_size() == 1) return;
  try {
    {
      const std::lock_guard lock(state_->mutex);
      state_->reason = first_line(reason);
    }
    state_->failed = true;
    state_->answer_roll(state_->store);
  } catch (const std::exception&) {
    // The others learn it from their own failing collective.
  }
}

Exchange ProcessGroup::all_reduce(const torch::Tensor& tensor, const std::string& what,
                                  Reduce reduce) const {
  const double n = world_size(), bytes = static_cast<double>(tensor.nbytes());
  return state_->start("all_reduce of " + what, {tensor}, 2 * bytes * (n - 1) / n,
                       [&](c10d::Backend& backend, std::vector<torch::Tensor>& tensors) {
                         c10d::AllreduceOptions options;
                         options.reduceOp = reduce_op(reduce);
                         return backend.allreduce(tensors, options);
                       });
}

Exchange ProcessGroup::broadcast(const torch::Tensor& tensor, const std::string& what,
                                 std::int64_t root) const {
  const double n = world_size(), bytes = static_cast<double>(tensor.nbytes());
  return state_->start("broadcast of " + what, {tensor}, bytes * (n - 1) / n,
                       [&](c10d::Backend& backend, std::vector<torch::Tensor>& tensors) {
                         c10d::BroadcastOptions options;
                         options.rootRank = root;
                         return backend.broadcast(tensors, options);
                       });
}

Exchange ProcessGroup::all_gather(const torch::Tensor& output, const torch::Tensor& input,
                                  const std::string& what) const {
  assert(output.numel() == input.numel() * world_size());
  if (!state_->gloo && !output.is_alias_of(input)) output.copy_(input.view_as(output));
  const double n = world_size(), bytes = static_cast<double>(output.nbytes());
  return state_->start("all_gather of " + what, {output.view(-1), input.view(-1)},
                       bytes * (n - 1) / n,
                       [&](c10d::Backend& backend, std::vector<torch::Tensor>& tensors) {
                         return backend._allgather_base(tensors[0], tensors[1]);
                       });
}

Exchange ProcessGroup::reduce_scatter(const torch::Tensor& output, const torch::Tensor& input,
                                      const std::string& what) const {
  assert(input.numel() == output.numel() * world_size());
  if (!state_->gloo && !output.is_alias_of(input)) output.copy_(input.view_as(output));
  const double n = world_size(), bytes = static_cast<double>(input.nbytes());
  return state_->start("reduce_scatter of " + what, {output.view(-1), input.view(-1)},
                       bytes * (n - 1) / n,
                       [&](c10d::Backend& backend, std::vector<torch::Tensor>& tensors) {
                         return backend._reduce_scatter_base(tensors[0], tensors[1]);
                       });
}

void ProcessGroup::barrier(const std::string& what) const {
  all_reduce(torch::zeros({1}, torch::kInt64), what).wait();
}

torch::Tensor ProcessGroup::sum(const torch::Tensor& tensor, const std::string& what) const {
  auto total = tensor.detach().clone(torch::MemoryFormat::Contiguous);
  all_reduce(total, what).wait();
  return total;
}

double ProcessGroup::max(double mine, const std::string& what) const {
  const auto value = torch::full({1}, mine, torch::kFloat64);
  all_reduce(value, what, Reduce::max).wait();
  return value.item<double>();
}

bool ProcessGroup::any(bool mine, const std::string& what) const {
  return max(mine ? 1 : 0, what) > 0;
}

std::vector<std::string> ProcessGroup::all_gather_text(const std::string& mine,
                                                       const std::string& what) const {
  const auto n = world_size();
  const auto sizes = torch::empty({n}, torch::kInt64);
  all_gather(sizes, torch::full({1}, static_cast<std::int64_t>(mine.size()), torch::kInt64),
             what + " (sizes)")
      .wait();
  const auto longest = std::max<std::int64_t>(1, sizes.max().item<std::int64_t>());
  const auto input = torch::zeros({longest}, torch::kUInt8);
  std::memcpy(input.data_ptr(), mine.data(), mine.size());
  const auto output = torch::empty({n, longest}, torch::kUInt8);
  all_gather(output, input, what).wait();
  std::vector<std::string> texts;
  for (std::int64_t rank = 0; rank < n; ++rank)
    texts.emplace_back(static_cast<const char*>(output[rank].data_ptr()),
                       static_cast<std::size_t>(sizes[rank].item<std::int64_t>()));
  return texts;
}

void ProcessGroup::expect_same(const std::string& text, const std::string& what) const {
  const auto hashes = torch::empty({world_size()}, torch::kInt64);
  all_gather(hashes, torch::full({1}, fingerprint(text), torch::kInt64), what).wait();
  const auto odd = (hashes != hashes[0]).nonzero();  // [n, 1]
  if (odd.numel() == 0) return;
  const auto other = odd[0].item<std::int64_t>();
  const auto texts = all_gather_text(text, what);
  std::istringstream lines(texts[0]), other_lines(texts[static_cast<std::size_t>(other)]);
  std::string line = "", other_line = "";
  while (line == other_line && (lines || other_lines)) {
    if (!std::getline(lines, line)) line = "nothing more";
    if (!std::getline(other_lines, other_line)) other_line = "nothing more";
  }
  const auto trimmed = [](const std::string& s) {
    const auto from = std::min(s.find_first_not_of(" \t"), s.size());
    const auto end = s.size() - (s.ends_with(',') ? 1 : 0);  // of JSON
    return s.substr(from, std::min<std::size_t>(200, end - from));
  };
  state_->failed = true;
  fail(Fault::usage, "ranks 0 and ", other, " disagree about ", what, ": rank 0 has ",
       trimmed(line), ", rank ", other, " has ", trimmed(other_line),
       "; start every rank with the same command, files and version");
}

}  // namespace llava::dist
