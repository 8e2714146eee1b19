#include "cpu_rows.h"

#include "cpu_kernels.h"
#include "inference.h"

#include <ATen/Parallel.h>

namespace llava::nn {
namespace {

using torch::Tensor;

/// A thread's share is worth waking it for from about this many numbers on.
constexpr std::int64_t kGrain = 16384;

/// Runs work(row) for rows of `width` numbers.
template <class Work>
void for_rows(std::int64_t rows, std::int64_t width, const Work& work) {
  at::parallel_for(0, rows, std::max<std::int64_t>(1, kGrain / width),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (auto row = begin; row < end; ++row) work(row);
                   });
}

}  // namespace

bool has_cpu_kernels(const torch::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == torch::kBFloat16 && is_inference() &&
         cpu::avx512_kernels() != nullptr;
}

const std::uint16_t* bfloat16_bits(const torch::Tensor& x) {
  return reinterpret_cast<const std::uint16_t*>(x.const_data_ptr<at::BFloat16>());
}
std::uint16_t* mutable_bfloat16_bits(const torch::Tensor& x) {
  return reinterpret_cast<std::uint16_t*>(x.data_ptr<at::BFloat16>());
}

torch::Tensor cpu_rms_norm(const torch::Tensor& x_, const torch::Tensor& weight, double eps) {
  const auto x = x_.contiguous();
  const auto width = x.size(-1);
  auto y = torch::empty_like(x);
  const auto* from = bfloat16_bits(x);
  const auto* weights = bfloat16_bits(weight);
  auto* to = mutable_bfloat16_bits(y);
  for_rows(x.numel() / width, width, [&](std::int64_t row) {
    cpu::kernels().rms_norm(from + row * width, weights, width, static_cast<float>(eps),
                            to + row * width);
  });
  return y;
}

torch::Tensor cpu_swiglu(const torch::Tensor& gate_, const torch::Tensor& up_) {
  const auto gate = gate_.contiguous(), up = up_.contiguous();
  const auto width = gate.size(-1);
  auto y = torch::empty_like(gate);
  const auto *gates = bfloat16_bits(gate), *ups = bfloat16_bits(up);
  auto* to = mutable_bfloat16_bits(y);
  for_rows(gate.numel() / width, width, [&](std::int64_t row) {
    cpu::kernels().swiglu(gates + row * width, ups + row * width, width, to + row * width);
  });
  return y;
}

torch::Tensor cpu_quick_gelu(const torch::Tensor& x_) {
  const auto x = x_.contiguous();
  const auto width = x.size(-1);
  auto y = torch::empty_like(x);
  const auto* from = bfloat16_bits(x);
  auto* to = mutable_bfloat16_bits(y);
  for_rows(x.numel() / width, width, [&](std::int64_t row) {
    cpu::kernels().quick_gelu(from + row * width, width, to + row * width);
  });
  return y;
}

torch::Tensor cpu_rotate(const torch::Tensor& x_, const torch::Tensor& cos_,
                         const torch::Tensor& sin_) {
  const auto x = x_.contiguous(), cos = cos_.contiguous(), sin = sin_.contiguous();
  const auto T = x.size(0), H = x.size(1), E = x.size(2);
  auto y = torch::empty_like(x);
  const auto *from = bfloat16_bits(x), *cosines = bfloat16_bits(cos), *sines = bfloat16_bits(sin);
  auto* to = mutable_bfloat16_bits(y);
  for_rows(T, H * E, [&](std::int64_t t) {
    for (auto head = t * H; head < (t + 1) * H; ++head)
      cpu::kernels().rotate(from + head * E, cosines + t * (E / 2), sines + t * (E / 2), E / 2,
                            to + head * E);
  });
  return y;
}

}  // namespace llava::nn
