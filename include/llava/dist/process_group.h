// Several processes, one run: who this one is, and the collectives between them. A run of one
// process takes the same path: its collectives return their input.
// Every collective is entered by all ranks in the same order; code inside `if (rank == 0)` never
// contains one. Tensors on the CPU travel through Gloo, those on a GPU through NCCL.
#pragma once

#include "llava/torch.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace llava::dist {

struct GroupConfig {
  std::string dist_backend = "auto";
  double dist_timeout = 1800;
  std::int64_t dist_check_steps = 3;
  double dist_link_speed = 0;

  template <class Field>
  void fields(Field& field) {
    field("dist_backend", dist_backend, "auto, gloo or nccl; auto: nccl on GPUs, else gloo");
    field("dist_timeout", dist_timeout, "seconds a collective may take before the run is ended");
    field("dist_check_steps", dist_check_steps,
          "steps in which every collective is first compared between the ranks");
    field("dist_link_speed", dist_link_speed,
          "pretend a link of this many GB/s per process, to test overlap; 0: the real one");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const GroupConfig& config);

/// One process's place among those of a run.
struct Place {
  std::int64_t rank = 0, world_size = 1;
  std::int64_t local_rank = 0, local_world_size = 1;  // among those of this machine
  std::string master_addr = "127.0.0.1";              // where the store is
  std::int64_t master_port = 0;
  bool agent_store = false;   // torchrun's agent keeps the store; else rank 0 does
  std::string attempt = "0";  // restarts of one run do not meet each other's keys
  std::string launcher;       // for people: "torchrun", "Open MPI", ...; "" when alone

  bool one_machine() const { return local_world_size == world_size; }
};

/// From the environment of torchrun (and of our own launcher), Open MPI, MPICH or Slurm; a run of
/// one where there is none.  Throws Error(usage) naming a variable that is missing or malformed.
Place place_from_environment();

enum class Reduce { sum, max, min };

/// A collective under way. Until it was waited for, its result must not be read nor its input
/// written.
class Exchange {
 public:
  struct Pending;
  Exchange();  // nothing to wait for
  explicit Exchange(std::unique_ptr<Pending> pending);
  Exchange(Exchange&&) noexcept;
  Exchange& operator=(Exchange&&) noexcept;
  ~Exchange();

  /// Returns when the result is there (on a GPU: when later work of the current stream will see
  /// it).  Throws Error(peer) naming the ranks that do not answer, the step and the collective.
  void wait();

 private:
  std::unique_ptr<Pending> pending_;
};

/// What this process sent, in bytes by the formulas of ring algorithms, and the time of it.
struct Traffic {
  std::int64_t bytes = 0;
  std::int64_t collectives = 0;
  double link_seconds = 0;    // bytes at dist_link_speed; 0 without it
  double waited_seconds = 0;  // spent in wait()
};

/// Not for use by two threads at once. In every collective `what` is its name in messages.
class ProcessGroup {
 public:
  /// A group of this process alone.
  ProcessGroup();

  /// Meets the other processes.  Throws Error(usage) if the port is taken or the device has no
  /// backend, Error(peer) if others do not come or the address does not answer.
  ProcessGroup(const GroupConfig& config, const Place& place, torch::Device device = torch::kCPU);

  /// Leaves together with the others, or at once after a failure.
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  std::int64_t rank() const;
  std::int64_t world_size() const;
  const Place& place() const;
  const Traffic& traffic() const;

  /// What this rank is at, for messages: the step (from 1) and the ids of its samples.
  void note(std::int64_t step, const std::string& samples = "") const;

  /// In place; every rank ends with the same bits.
  [[nodiscard]] Exchange all_reduce(const torch::Tensor& tensor, const std::string& what,
                                    Reduce reduce = Reduce::sum) const;
  [[nodiscard]] Exchange broadcast(const torch::Tensor& tensor, const std::string& what,
                                   std::int64_t root = 0) const;
  /// output [world * n] = the inputs [n] of all ranks, by rank. `input` may be this rank's own part
  /// of `output`.
  [[nodiscard]] Exchange all_gather(const torch::Tensor& output, const torch::Tensor& input,
                                    const std::string& what) const;
  /// output [n] = the sum over ranks of part `rank` of input [world * n]. `output` may be that part
  /// of `input`; the rest of `input` is undefined afterwards.
  [[nodiscard]] Exchange reduce_scatter(const torch::Tensor& output, const torch::Tensor& input,
                                        const std::string& what) const;
  void barrier(const std::string& what) const;

  // Small things, blocking.
  /// Sum of `tensor` over all ranks; `tensor` is unchanged.
  torch::Tensor sum(const torch::Tensor& tensor, const std::string& what = "a sum") const;
  double max(double mine, const std::string& what = "a maximum") const;
  /// Whether any rank says true.
  bool any(bool mine, const std::string& what = "a vote") const;
  /// Every rank's text, by rank.
  std::vector<std::string> all_gather_text(const std::string& mine, const std::string& what) const;

  /// Throws Error(usage) on every rank, naming two ranks and the first line in which they differ,
  /// unless all ranks give the same text: settings, data, versions.
  void expect_same(const std::string& text, const std::string& what) const;

  /// Tells the others why this rank goes, so that their messages can say so. Not a collective.
  void leave_because(const std::string& reason) const noexcept;

 private:
  struct State;
  friend class Exchange;
  std::shared_ptr<State> state_;
};

}  // namespace llava::dist
