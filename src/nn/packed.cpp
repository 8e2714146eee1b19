#include "llava/nn/packed.h"

#include "llava/base/check.h"
#include "llava/nn/linear.h"

#include "cpu_kernels.h"
#include "cpu_rows.h"
#include "packed_products.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

#include <cstring>

namespace llava::nn {
namespace {

using torch::Tensor;

Tensor with_padding(const Tensor& x, Packing packing) {  // [T, K]
  const auto missing = padded_inputs(x.size(1), packing) - x.size(1);
  return missing == 0 ? x : torch::constant_pad_nd(x, {0, missing});
}

std::int64_t bytes_of_block(Packing packing, std::int64_t inputs) {
  if (packing == Packing::bfloat16) return cpu::kBlock * inputs * 2;
  const int bits = packing == Packing::int8 ? 8 : 4;
  return padded_inputs(inputs, packing) / cpu::group_inputs(bits) * cpu::group_bytes(bits);
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
  const auto blocks = num_blocks(), inputs = padded_inputs(inputs_, packing_);
  const auto groups = inputs / cpu::group_inputs(packing_ == Packing::int8 ? 8 : 4);
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
  return inputs > 0 && inputs % (packing == Packing::bfloat16 ? 2 : 32) == 0;
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
  const auto T = x.numel() / x.size(-1);
  const auto type = x.scalar_type() == torch::kBFloat16 ? torch::kBFloat16 : torch::kFloat32;
  const bool is_bfloat16 = weights.at(0)->packing() == Packing::bfloat16;
  const auto rows = x.to(is_bfloat16 ? torch::kBFloat16 : type).contiguous();
  auto shape = x.sizes().vec();
  std::vector<Tensor> outputs, wide_biases;
  std::vector<Product> products;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    shape.back() = weights[i]->outputs();
    outputs.push_back(torch::empty(shape, x.options().dtype(type)));
    wide_biases.push_back(biases[i].defined() ? biases[i].to(torch::kFloat32) : Tensor());
    const auto* bias = biases[i].defined() ? wide_biases[i].const_data_ptr<float>() : nullptr;
    products.push_back({weights[i], bias, outputs[i].data_ptr()});
  }
  multiply_rows({rows.const_data_ptr(), rows.scalar_type() == torch::kBFloat16, T, x.size(-1)},
                products, type == torch::kBFloat16);
  for (auto& y : outputs) y = y.to(x.scalar_type());
  return outputs;
}

namespace {

InputRows rows_of(const Tensor& x) {  // [T, K], contiguous
  return {x.const_data_ptr(), /*is_bfloat16=*/true, x.size(0), x.size(1)};
}

/// A product that goes to y, whose bias is kept in `wide_bias`.
Product product_of(const PackedWeight& weight, const Tensor& bias, Tensor& wide_bias,
                   const Tensor& y) {
  if (bias.defined()) wide_bias = bias.to(torch::kFloat32);
  return {&weight, bias.defined() ? wide_bias.const_data_ptr<float>() : nullptr, y.data_ptr()};
}

}  // namespace

torch::Tensor multiply_and_add(const torch::Tensor& x_, const PackedWeight& weight,
                               const torch::Tensor& bias, const torch::Tensor& residual_) {
  const auto x = x_.contiguous(), residual = residual_.contiguous();
  auto y = torch::empty({x.size(0), weight.outputs()}, x.options());
  Tensor wide_bias;
  multiply_and_add(rows_of(x), product_of(weight, bias, wide_bias, y), bfloat16_bits(residual));
  return y;
}

torch::Tensor multiply_gated(const torch::Tensor& x_, const PackedWeight& gate,
                             const torch::Tensor& gate_bias, const PackedWeight& up,
                             const torch::Tensor& up_bias) {
  const auto x = x_.contiguous();
  auto y = torch::empty({x.size(0), gate.outputs()}, x.options());
  Tensor wide_gate_bias, wide_up_bias;
  multiply_gated(rows_of(x), product_of(gate, gate_bias, wide_gate_bias, y),
                 product_of(up, up_bias, wide_up_bias, y));
  return y;
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
