// How gradients of the ranks become one: the seam the trainer sees. One object per strategy: alone,
// DDP (every rank holds everything), ZeRO 1 to 3 (ranks share optimizer states, gradients,
// weights). Source of ZeRO: "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
// section 5.
#pragma once

#include "llava/dist/process_group.h"
#include "llava/torch.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llava::dist {

struct SyncConfig {
  std::int64_t zero = 0;
  bool zero_offload_optimizer = false;
  std::string grad_dtype = "auto";
  bool grad_compression = false;
  std::int64_t ddp_bucket_cap_mb = 0;

  template <class Field>
  void fields(Field& field) {
    field("zero", zero,
          "what the processes share instead of each holding all of it: 0 nothing, 1 optimizer "
          "states, 2 also gradients, 3 also weights");
    field("zero_offload_optimizer", zero_offload_optimizer,
          "with zero 1 to 3: optimizer states and the update on the CPU");
    field("grad_dtype", grad_dtype,
          "with zero 1 to 3: what gradients are summed in, auto (as the weights) or float32");
    field("grad_compression", grad_compression, "exchange float32 gradients in bfloat16");
    field("ddp_bucket_cap_mb", ddp_bucket_cap_mb,
          "MiB of gradients in one exchange; 0: 25, or 1 a process if that is more");
  }
};

/// Throws Error(usage) naming the setting that makes no sense.
void check(const SyncConfig& config);

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// All weights of a model, as ZeRO 3 wants to know them.
struct Weights {
  /// In the order in which they are used; what learns among them requires gradients.
  NamedTensors parameters;
  /// Layer of each parameter, -1 for none; a layer's weights are used between the callbacks only.
  std::vector<std::int64_t> layers;
};

/// Bytes that a strategy holds on this rank between steps, by cause; gradients at their most.
struct HeldBytes {
  std::int64_t weights = 0, gradients = 0, buffers = 0;
};

class GradientSync {
 public:
  virtual ~GradientSync() = default;

  /// Runs backward; exchanges gradients only when `last_micro_step` (ZeRO 2 and 3: always). `loss`
  /// is this rank's share of the step's loss, so that the gradients of all ranks and micro-steps
  /// add up, never average.
  virtual void backward(const torch::Tensor& loss, bool last_micro_step) = 0;

  /// What this rank's optimizer updates: of each group of parameters, whole ones or pieces
  /// "name[begin:end]" of the flattened parameter (see split_piece). After the last micro-step
  /// their .grad is the gradient of the whole step. Empty groups stay.
  virtual std::vector<NamedTensors> owned(const std::vector<NamedTensors>& groups) {
    return groups;
  }

  /// Norm of the gradient of all parameters, [] float32, from that of the owned ones.
  virtual torch::Tensor total_norm(const torch::Tensor& owned_norm) { return owned_norm; }

  /// After the optimizer changed what it owns: all ranks get the new weights, gradients are
  /// dropped.
  virtual void publish() {}

  /// Around every layer of the decoder in forward, with the hidden states that enter or leave it.
  virtual void before_layer(std::int64_t /*layer*/, const torch::Tensor& /*hidden*/) {}
  virtual void after_layer(std::int64_t /*layer*/, const torch::Tensor& /*hidden*/) {}

  /// Brings all weights into the main memory of rank 0, to be saved; nothing can be computed with
  /// the model afterwards. A collective; does nothing where rank 0 has all weights anyway.
  virtual void gather_on_host() {}

  virtual HeldBytes held_bytes() const { return {}; }
};

/// The strategy of `config` for these processes. What learns is made equal to rank 0's; with ZeRO,
/// parameters become views of flat tensors. `group` and `weights` must outlive it.
std::unique_ptr<GradientSync> make_gradient_sync(const SyncConfig& config,
                                                 const ProcessGroup& group, const Weights& weights);

/// One process: its gradients are the gradients.
std::unique_ptr<GradientSync> alone();

/// "name[begin:end]" -> {name, begin, end}; a name without a range is whole: {name, 0, -1}.
struct PieceName {
  std::string parameter;
  std::int64_t begin = 0, end = -1;
};
PieceName split_piece(const std::string& name);

}  // namespace llava::dist
