#include "llava/nn/packed.h"

#include "llava/base/check.h"
#include "llava/nn/linear.h"

#include "cpu_kernels.h"
#include "cpu_rows.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

#include <cstring>

namespace llava::nn {
namespace {

using torch::Tensor;

constexpr std::int64_t kWorthAThread = 1 << 18;  // multiplications
constexpr std::int64_t kRowsAtOnce = 96;         // rows of x whose outputs wait in the cache

/// Inputs as they are packed: the last group of bytes is filled up with zeros.
std::int64_t padded(std::int64_t inputs, Packing packing) {
  return packing == Packing::int8 ? cpu::round_up(inputs, cpu::kInt8Group) : inputs;
}

Tensor with_padding(const Tensor& x, Packing packing) {  // [T, K]
  const auto missing = padded(x.size(1), packing) - x.size(1);
  return missing == 0 ? x : torch::constant_pad_nd(x, {0, missing});
}

std::int64_t bytes_of_block(Packing packing, std::int64_t inputs) {
  switch (packing) {
    case Packing::bfloat16: return cpu::kBlock * inputs * 2;
    case Packing::int8: return padded(inputs, packing) / cpu::kInt8Group * cpu::kInt8GroupBytes;
    case Packing::int4: return inputs / cpu::kGroup * cpu::kInt4GroupBytes;
  }
  return 0;
}

/// Memory in huge pages where the system has them, since a weight is read from end to end.
Tensor huge_bytes(std::int64_t count) {
  auto bytes = torch::empty({count}, torch::kUInt8);
  constexpr std::uintptr_t kPage = 4096;
  const auto begin =
      (reinterpret_cast<std::uintptr_t>(bytes.data_ptr()) + kPage - 1) & ~(kPage - 1);
  const auto end = reinterpret_cast<std::uintptr_t>(bytes.data_ptr()) + count;
  if (end > begin + (1 << 21)) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  return bytes;
}

/// Room that a thread keeps for its next call; one for each use.
enum class Use { bytes, row, tile };
template <class T, Use>
T* scratch(std::int64_t count) {
  static thread_local std::vector<T> room;
  if (room.size() < static_cast<std::size_t>(count)) room.resize(static_cast<std::size_t>(count));
  return room.data();
}

/// Inputs [T, K] as bytes, quantised once for all weights. Those of few rows, as decode has, lie in
/// room that is kept, so only one of a thread lives at a time.
class Bytes {
 public:
  explicit Bytes(const Tensor& x) : inputs_(x.size(1)) {
    const auto count = x.numel(), groups = count / cpu::kGroup;
    const auto bytes = count + groups * std::int64_t{sizeof(float) + sizeof(std::int32_t)};
    if (x.size(0) > kFewRows) owned_ = torch::empty({bytes}, torch::kInt8);
    values_ =
        owned_.defined() ? owned_.data_ptr<std::int8_t>() : scratch<std::int8_t, Use::bytes>(bytes);
    scales_ = reinterpret_cast<float*>(values_ + count);  // whole groups: aligned
    minus_sums_ = reinterpret_cast<std::int32_t*>(scales_ + groups);
    at::parallel_for(0, x.size(0), kFewRows, [&](std::int64_t begin, std::int64_t end) {
      for (auto t = begin; t < end; ++t) quantize(x, t);
    });
  }
  cpu::ByteRows from(std::int64_t row) const {
    return cpu::ByteRows{values_, scales_, minus_sums_}.from(row, 0, inputs_);
  }

 private:
  static constexpr std::int64_t kFewRows = 16;

  void quantize(const Tensor& x, std::int64_t row) const {
    const float* from = nullptr;
    if (x.scalar_type() == torch::kFloat32) {
      from = x.const_data_ptr<float>() + row * inputs_;
    } else {
      auto* wide = scratch<float, Use::row>(inputs_);
      cpu::kernels().widen_row(bfloat16_bits(x) + row * inputs_, inputs_, wide);
      from = wide;
    }
    const auto group = row * inputs_ / cpu::kGroup;
    cpu::kernels().quantize_row(from, inputs_, values_ + row * inputs_, scales_ + group,
                                minus_sums_ + group);
  }

  std::int64_t inputs_;
  Tensor owned_;
  std::int8_t* values_;
  float* scales_;
  std::int32_t* minus_sums_;
};

/// A block's outputs to where they belong in y [..., N].
void store(const float* tile, std::int64_t rows, const float* bias, std::int64_t column,
           std::int64_t row, const Tensor& y) {
  const auto N = y.size(-1);
  const auto count = std::min(cpu::kBlock, N - column);
  const float* added = bias ? bias + column : nullptr;
  if (y.scalar_type() == torch::kBFloat16) {
    cpu::kernels().store_bfloat16(tile, cpu::kBlock, rows, count, added,
                                  mutable_bfloat16_bits(y) + row * N + column, N);
    return;
  }
  for (std::int64_t m = 0; m < rows; ++m) {
    auto* to = y.data_ptr<float>() + (row + m) * N + column;
    for (std::int64_t n = 0; n < count; ++n)
      to[n] = tile[m * cpu::kBlock + n] + (added ? added[n] : 0);
  }
}

/// One weight of a product.
struct Part {
  const PackedWeight* weight;
  Tensor y;          // [..., N]
  Tensor wide_bias;  // float32, or undefined
  const float* bias() const {
    return wide_bias.defined() ? wide_bias.const_data_ptr<float>() : nullptr;
  }
};

/// Rows of x [T, K], or of the bytes made of it, times a block of a weight: a tile [rows, 64].
void multiply_block(const Tensor& x, const Bytes* bytes, std::int64_t row, std::int64_t rows,
                    const PackedWeight& weight, std::int64_t block, float* tile) {
  const auto& kernels = cpu::kernels();
  const auto K = x.size(1);
  const auto* from = weight.block(block);
  if (weight.packing() == Packing::bfloat16) {
    kernels.multiply_bfloat16(bfloat16_bits(x) + row * K, K, rows,
                              reinterpret_cast<const std::uint16_t*>(from), K, tile, cpu::kBlock);
  } else {
    const bool is_int8 = weight.packing() == Packing::int8;
    (is_int8 ? kernels.multiply_int8 : kernels.multiply_int4)(bytes->from(row), rows, from, K, tile,
                                                              cpu::kBlock);
  }
}

struct FrozenProduct : torch::autograd::Function<FrozenProduct> {
  struct Kept : torch::CustomClassHolder {
    std::shared_ptr<const PackedWeight> weight;
  };
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x,
                        const std::shared_ptr<const PackedWeight>& weight) {
    auto kept = c10::make_intrusive<Kept>();
    kept->weight = weight;
    context->saved_data["weight"] = c10::IValue::make_capsule(std::move(kept));
    return torch::linear(x, weight->unpack(x.scalar_type()));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto capsule = context->saved_data["weight"].toCapsule();
    const auto& weight = static_cast<const Kept&>(*capsule).weight;
    return {torch::matmul(grads[0], weight->unpack(grads[0].scalar_type())), Tensor()};
  }
};

}  // namespace

PackedWeight::PackedWeight(const torch::Tensor& weight, Packing packing)
    : packing_(packing), outputs_(weight.size(0)), inputs_(weight.size(1)) {
  expect(can_pack(inputs_, packing), Fault::usage, "a weight of ", inputs_,
         " inputs cannot be packed");
  bytes_ = huge_bytes(num_blocks() * block_bytes());
  const bool is_bfloat16 = packing == Packing::bfloat16;
  const auto type = is_bfloat16 ? torch::kBFloat16 : torch::kFloat32;
  const auto original = weight.to(torch::kCPU);
  const auto& kernels = cpu::kernels();
  at::parallel_for(0, num_blocks(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) {
      const auto rows = std::min(cpu::kBlock, outputs_ - i * cpu::kBlock);
      const auto part =
          with_padding(original.narrow(0, i * cpu::kBlock, rows).to(type), packing).contiguous();
      auto* to = bytes_.data_ptr<std::uint8_t>() + i * block_bytes();
      if (is_bfloat16) {
        kernels.pack_rows(bfloat16_bits(part), inputs_, rows, inputs_,
                          reinterpret_cast<std::uint16_t*>(to));
      } else {
        (packing == Packing::int8 ? kernels.pack_int8 : kernels.pack_int4)(
            part.const_data_ptr<float>(), part.size(1), rows, part.size(1), to);
      }
    }
  });
  bytes_ = bytes_.to(weight.device());
}

std::int64_t PackedWeight::num_blocks() const {
  return cpu::round_up(outputs_, cpu::kBlock) / cpu::kBlock;
}
std::int64_t PackedWeight::block_bytes() const { return bytes_of_block(packing_, inputs_); }
const std::uint8_t* PackedWeight::block(std::int64_t i) const {
  return bytes_.const_data_ptr<std::uint8_t>() + i * block_bytes();
}

torch::Tensor PackedWeight::unpack(torch::ScalarType type) const {
  using torch::indexing::Slice;
  const auto blocks = num_blocks(), inputs = padded(inputs_, packing_);
  const auto groups = inputs / (packing_ == Packing::int8 ? cpu::kInt8Group : cpu::kGroup);
  Tensor weight;  // [blocks, 64, inputs]
  if (packing_ == Packing::bfloat16) {
    weight = bytes_.view(torch::kBFloat16)
                 .view({blocks, inputs_ / 2, cpu::kBlock, 2})
                 .transpose(1, 2)
                 .reshape({blocks * cpu::kBlock, inputs_})
                 .to(type);
  } else {
    const auto all = bytes_.view({blocks, groups, -1});
    const auto scales = all.slice(2, 0, 2 * cpu::kBlock)
                            .contiguous()
                            .view(torch::kBFloat16)
                            .to(torch::kFloat32)
                            .transpose(1, 2)
                            .unsqueeze(-1);  // [blocks, 64, groups, 1]
    auto values = all.slice(2, 2 * cpu::kBlock)
                      .reshape({blocks, groups, -1, cpu::kBlock, 4})
                      .permute({0, 3, 1, 2, 4})
                      .reshape({blocks, cpu::kBlock, groups, -1});  // bytes of each group
    if (packing_ == Packing::int4)
      values = torch::cat({values.bitwise_and(15), values.bitwise_right_shift(4)}, -1);
    const double added = packing_ == Packing::int8 ? 128 : 8;
    weight = ((values.to(torch::kFloat32) - added) * scales)
                 .reshape({blocks * cpu::kBlock, inputs})
                 .to(type);
  }
  return weight.slice(0, 0, outputs_).slice(1, 0, inputs_);
}

bool can_pack(std::int64_t inputs, Packing packing) {
  return inputs > 0 && inputs % (packing == Packing::bfloat16 ? 2 : cpu::kGroup) == 0;
}

bool prefers_packed_bfloat16() { return cpu::avx512_kernels() != nullptr; }

std::vector<torch::Tensor> multiply(const torch::Tensor& x,
                                    const std::vector<const PackedWeight*>& weights,
                                    const std::vector<torch::Tensor>& biases) {
  if (!x.is_cpu()) {
    std::vector<Tensor> outputs;
    for (std::size_t i = 0; i < weights.size(); ++i)
      outputs.push_back(torch::linear(x, weights[i]->unpack(x.scalar_type()), biases[i]));
    return outputs;
  }
  const auto packing = weights.at(0)->packing();
  const auto T = x.numel() / x.size(-1), K = padded(x.size(-1), packing);
  const auto type = x.scalar_type() == torch::kBFloat16 ? torch::kBFloat16 : torch::kFloat32;
  const auto read_as = packing == Packing::bfloat16 ? torch::kBFloat16 : type;
  const auto flat = with_padding(x.reshape({T, x.size(-1)}).to(read_as), packing).contiguous();
  std::optional<Bytes> bytes;
  if (packing != Packing::bfloat16) bytes.emplace(flat);

  auto shape = x.sizes().vec();
  std::vector<Tensor> outputs;
  std::vector<Part> parts;
  outputs.reserve(weights.size());
  parts.reserve(weights.size());
  std::int64_t blocks = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    shape.back() = weights[i]->outputs();
    outputs.push_back(torch::empty(shape, x.options().dtype(type)));
    parts.push_back(
        {weights[i], outputs[i], biases[i].defined() ? biases[i].to(torch::kFloat32) : Tensor()});
    blocks += weights[i]->num_blocks();
  }
  const auto grain = std::max<std::int64_t>(1, kWorthAThread / (cpu::kBlock * K * T));
  at::parallel_for(0, blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    auto* tile = scratch<float, Use::tile>(kRowsAtOnce * cpu::kBlock);
    for (auto i = begin; i < end; ++i) {
      auto block = i;
      std::size_t part = 0;
      while (block >= parts[part].weight->num_blocks()) block -= parts[part++].weight->num_blocks();
      for (std::int64_t row = 0; row < T; row += kRowsAtOnce) {
        const auto rows = std::min(kRowsAtOnce, T - row);
        multiply_block(flat, bytes ? &*bytes : nullptr, row, rows, *parts[part].weight, block,
                       tile);
        store(tile, rows, parts[part].bias(), block * cpu::kBlock, row, parts[part].y);
      }
    }
  });
  for (auto& y : outputs) y = y.to(x.scalar_type());
  return outputs;
}

torch::Tensor multiply_frozen(const torch::Tensor& x,
                              const std::shared_ptr<const PackedWeight>& weight) {
  return FrozenProduct::apply(x, weight);
}

std::int64_t pack_linears(torch::nn::Module& module, Packing packing) {
  torch::NoGradGuard no_grad;
  std::int64_t count = 0;
  module.apply([&](const std::string& name, torch::nn::Module& part) {
    auto* linear = part.as<LinearImpl>();
    if (!linear || linear->packed || name.find("lora_") != name.npos) return;
    if (!can_pack(linear->in(), packing)) return;
    count += linear->weight.numel();
    linear->pack(packing);
  });
  return count;
}

}  // namespace llava::nn
