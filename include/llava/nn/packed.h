// Weights laid out once for this CPU's products, in the one layout that serves prefill and decode,
// in bfloat16 or quantised to bytes in groups of 128 inputs or nibbles in groups of 32, with a
// scale each. Quantised weights meet inputs as two bytes each, in groups of 512 with a scale for
// either, or one byte where coarse inputs will do. A row's result does not depend on the rows
// beside it.
//   T rows   K inputs   N outputs
#pragma once

#include "llava/torch.h"

#include <memory>
#include <optional>
#include <vector>

namespace llava::nn {

enum class Packing {
  bfloat16,
  int8,  // 8.125 bits a weight
  int4   // 4.5 bits a weight
};

class PackedWeight {
 public:
  /// weight [N, K], packed on the CPU and kept on the weight's device. Throws Error(usage) unless
  /// can_pack().
  PackedWeight(const torch::Tensor& weight, Packing packing);

  Packing packing() const { return packing_; }
  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t num_blocks() const;  // of 64 outputs
  std::int64_t block_bytes() const;
  std::int64_t bytes() const { return num_blocks() * block_bytes(); }
  torch::Device device() const { return bytes_.device(); }
  const std::uint8_t* block(std::int64_t i) const;

  /// The weight that products are made with: [N, K].
  torch::Tensor unpack(torch::ScalarType type) const;

 private:
  Packing packing_;
  std::int64_t outputs_, inputs_;
  torch::Tensor bytes_;
};

/// Whether weights [N, inputs] can be kept so: all but odd numbers of inputs, or where bytes are
/// asked for, numbers that 32 does not divide.
bool can_pack(std::int64_t inputs, Packing packing);

/// Whether this CPU multiplies bfloat16 faster from packed weights than LibTorch does.
bool prefers_packed_bfloat16();

/// Products of one input x [T, K] with several weights [N_i, K], in one pass: [T, N_i] each, of x's
/// type. `biases` [N_i] may be undefined. No gradients. On a GPU weights are unpacked for each
/// product: that saves memory, not time.
std::vector<torch::Tensor> multiply(const torch::Tensor& x,
                                    const std::vector<const PackedWeight*>& weights,
                                    const std::vector<torch::Tensor>& biases);

/// residual [T, N] and the product of x [T, K] with a weight; bfloat16 on a CPU.
torch::Tensor multiply_and_add(const torch::Tensor& x, const PackedWeight& weight,
                               const torch::Tensor& bias, const torch::Tensor& residual);

/// silu(gate x) * up x of two weights [N, K] of one packing: [T, N]; bfloat16 on a CPU.
torch::Tensor multiply_gated(const torch::Tensor& x, const PackedWeight& gate,
                             const torch::Tensor& gate_bias, const PackedWeight& up,
                             const torch::Tensor& up_bias);

/// While one lives on this thread, quantised weights meet inputs of 8 bits instead of about 15:
/// products of many rows then take half the time. For prompts.
class CoarseInputs {
 public:
  explicit CoarseInputs(bool is_on) : before_(on) { on = on || is_on; }
  ~CoarseInputs() { on = before_; }
  CoarseInputs(const CoarseInputs&) = delete;
  CoarseInputs& operator=(const CoarseInputs&) = delete;
  static bool is_on() { return on; }

 private:
  bool before_;
  static inline thread_local bool on = false;
};

/// x [T, K] with a frozen quantised weight under training: products with the unpacked weight, with
/// gradients for x alone.
torch::Tensor multiply_frozen(const torch::Tensor& x,
                              const std::shared_ptr<const PackedWeight>& weight);

/// Packs the weights of all Linears of a module that can be, one by one, and gives the originals'
/// memory back: such a Linear computes, but is not trained or saved any more. LoRA's own stay as
/// they are. Returns how many weights (numbers) were packed.
std::int64_t pack_linears(torch::nn::Module& module, Packing packing);

}  // namespace llava::nn
