// Gradients in flat buckets that are exchanged while backward still runs: the engine of DDP and
// ZeRO. Three things that know nothing of each other's purpose: a layout of tensors end to end, a
// collector of gradients, and a program that keeps the order of collectives the same on all ranks.
#pragma once

#include "llava/dist/gradient_sync.h"

#include <functional>
#include <optional>

namespace llava::dist {

/// Values that one tensor of a bucket begins at a multiple of, so that pieces of parameters begin
/// where blocks of 8-bit optimizer states do (train/eight_bit.h).
constexpr std::int64_t kAlignment = 256;

/// A tensor's place in a bucket.
struct Slot {
  std::string name;
  torch::Tensor parameter;
  std::int64_t begin = 0, size = 0;  // values
  bool filled = false;               // holds gradient of this step
  bool arrived = false;              // in this backward

  /// This place of a bucket's flat tensor, in the parameter's shape.
  torch::Tensor view(const torch::Tensor& flat) const {
    return flat.narrow(0, begin, size).view(parameter.sizes());
  }
};

/// Parameters of one dtype and device whose gradients travel together.
struct Bucket {
  std::vector<Slot> slots;
  std::int64_t size = 0;     // values, with padding; a multiple of world * kAlignment
  std::int64_t layer = -1;   // whose weights these are, or -1
  bool learns = true;        // else these are frozen weights
  torch::Tensor gradients;   // [size]; undefined while there are none
  std::int64_t missing = 0;  // slots that have not arrived in this backward
  bool closed = false;       // handed over in this backward

  std::string name() const;  // for messages
  torch::TensorOptions options() const {
    return slots.front().parameter.options().requires_grad(false);
  }
};

/// Parameters -> buckets of one dtype and device, all learning or all frozen: a bucket for each
/// layer, and of at most `cap_bytes` (or one parameter) for what is in no layer. Buckets and slots
/// are in the order in which backward makes gradients: from the last parameter to the first.
std::vector<Bucket> make_buckets(const Weights& weights, std::int64_t cap_bytes,
                                 std::int64_t world_size, bool with_frozen);

/// Bytes of config.ddp_bucket_cap_mb.
std::int64_t bucket_bytes(const SyncConfig& config, std::int64_t world_size);

/// Moves gradients into their buckets as soon as backward has made them.
class Collector {
 public:
  /// `dtype`: of the buckets' gradients; nothing: as the parameters. With `keeps_gradients` a
  /// parameter's .grad is its place in the bucket afterwards, else it is undefined.
  /// `on_full(bucket)` is called when every parameter of a bucket has its gradient.
  Collector(std::vector<Bucket>& buckets, std::optional<torch::ScalarType> dtype,
            bool keeps_gradients, std::function<void(std::size_t)> on_full);
  ~Collector();
  Collector(const Collector&) = delete;
  Collector& operator=(const Collector&) = delete;

  void begin_backward();

  /// Makes a bucket whole: a parameter that took no part has gradient zero. Nothing may arrive
  /// in it until the next begin_backward().
  void close(std::size_t bucket);

 private:
  void collect(std::size_t bucket, Slot& slot);
  const torch::Tensor& gradients(Bucket& bucket);

  std::vector<Bucket>& buckets_;
  std::optional<torch::ScalarType> dtype_;
  bool keeps_gradients_;
  std::function<void(std::size_t)> on_full_;
};

/// Operations that are issued in one order, the order in which they were added, whatever the order
/// in which they become ready: what lets every rank enter the same collectives.
class Program {
 public:
  std::size_t add(std::function<void()> issue);
  void begin();                               // nothing is ready, nothing issued
  void ready(std::size_t operation);          // issued once all before it are
  void issue_through(std::size_t operation);  // now, with all before it
  void finish();                              // all of it

 private:
  struct Operation {
    std::function<void()> issue;
    bool ready = false;
  };
  std::vector<Operation> operations_;
  std::size_t next_ = 0;
};

}  // namespace llava::dist
