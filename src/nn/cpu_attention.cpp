#include "cpu_attention.h"

#include "cpu_kernels.h"
#include "cpu_rows.h"

#include <ATen/Parallel.h>

#include <cmath>

namespace llava::nn {
namespace {

using torch::Tensor;

/// Keys and values [L, E] of one head, packed for as many queries as there are.
struct PackedHead {
  void pack(const std::uint16_t* k, std::int64_t k_stride, const std::uint16_t* v,
            std::int64_t v_stride, std::int64_t L, std::int64_t E) {
    const auto& kernels = cpu::kernels();
    const auto pairs = cpu::round_up(L, 2);
    keys.resize(static_cast<std::size_t>(cpu::round_up(L, cpu::kBlock) * E));
    values.resize(static_cast<std::size_t>(pairs * cpu::round_up(E, cpu::kBlock)));
    for (std::int64_t key = 0; key < L; key += cpu::kBlock)
      kernels.pack_rows(k + key * k_stride, k_stride, std::min(cpu::kBlock, L - key), E,
                        keys.data() + key * E);
    for (std::int64_t column = 0; column < E; column += cpu::kBlock)
      kernels.pack_columns(v + column, v_stride, L, std::min(cpu::kBlock, E - column),
                           values.data() + column * pairs);
  }
  std::vector<std::uint16_t> keys, values;
};

Tensor with_whole_rows(const Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

}  // namespace

float attention_scale(std::int64_t head_size) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_size)));
}

bool has_cpu_attention(const torch::Tensor& q) { return has_cpu_kernels(q) && q.size(-1) % 2 == 0; }

torch::Tensor cpu_attention(const torch::Tensor& q_, const torch::Tensor& k_,
                            const torch::Tensor& v_, std::int64_t first, bool is_causal) {
  const auto q = with_whole_rows(q_), k = with_whole_rows(k_), v = with_whole_rows(v_);
  const auto N = q.size(0), T = q.size(1), H = q.size(2), E = q.size(3);
  const auto L = k.size(1), K = k.size(2), groups = H / K;
  auto output = torch::empty({N, T, H, E}, q.options());
  auto* to = mutable_bfloat16_bits(output);
  at::parallel_for(0, N * K, 1, [&](std::int64_t begin, std::int64_t end) {
    thread_local PackedHead packed;
    thread_local std::vector<float> scratch;
    scratch.resize(static_cast<std::size_t>(cpu::attention_scratch(L, E)));
    for (auto i = begin; i < end; ++i) {
      const auto n = i / K, kv_head = i % K;
      packed.pack(bfloat16_bits(k) + n * k.stride(0) + kv_head * k.stride(2), k.stride(1),
                  bfloat16_bits(v) + n * v.stride(0) + kv_head * v.stride(2), v.stride(1), L, E);
      for (auto head = kv_head * groups; head < (kv_head + 1) * groups; ++head)
        cpu::kernels().attend({.q = bfloat16_bits(q) + n * q.stride(0) + head * q.stride(2),
                               .q_stride = q.stride(1),
                               .num_queries = T,
                               .head_size = E,
                               .keys = packed.keys.data(),
                               .values = packed.values.data(),
                               .num_keys = L,
                               .first = first,
                               .is_causal = is_causal,
                               .scale = attention_scale(E),
                               .output = to + (n * T * H + head) * E,
                               .output_stride = H * E},
                              scratch.data());
    }
  });
  return output;
}

torch::Tensor cpu_attention_of_one(const torch::Tensor& q_, const torch::Tensor& keys,
                                   const torch::Tensor& values) {
  const auto q = q_.contiguous();
  const auto H = q.size(0), E = q.size(1), K = keys.size(0), L = keys.size(1), groups = H / K;
  auto output = torch::empty({H, E}, q.options());
  auto* to = mutable_bfloat16_bits(output);
  at::parallel_for(0, K, 1, [&](std::int64_t begin, std::int64_t end) {
    thread_local std::vector<float> weights;
    weights.resize(static_cast<std::size_t>(cpu::round_up(L, 16)));
    for (auto head = begin; head < end; ++head)
      cpu::kernels().attend_one({.q = bfloat16_bits(q) + head * groups * E,
                                 .num_heads = groups,
                                 .head_size = E,
                                 .keys = bfloat16_bits(keys) + head * keys.stride(0),
                                 .values = bfloat16_bits(values) + head * values.stride(0),
                                 .num_keys = L,
                                 .scale = attention_scale(E),
                                 .output = to + head * groups * E,
                                 .weights = weights.data()});
  });
  return output;
}

}  // namespace llava::nn
