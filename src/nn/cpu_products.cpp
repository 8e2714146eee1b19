#include "cpu_products.h"

#include "cpu_kernels.h"
#include "cpu_product_kernels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace llava::nn {
namespace {

using torch::Tensor;

constexpr std::int64_t kEnoughRows = 48;         // below, packing a weight costs more than it gains
constexpr std::int64_t kWorthAThread = 1 << 21;  // multiplications

template <class Element>
const cpu::ProductKernels<Element>& kernels();
template <>
const cpu::ProductKernels<float>& kernels<float>() {
  return *cpu::float_products();
}
template <>
const cpu::ProductKernels<std::uint16_t>& kernels<std::uint16_t>() {
  return *cpu::bfloat16_products();
}

template <class Element>
const Element* data(const Tensor& x) {
  return static_cast<const Element*>(x.const_data_ptr());
}

/// Room that a thread keeps for its next call.
template <class T>
T* scratch(std::int64_t count) {
  static thread_local std::vector<T> room;
  if (room.size() < static_cast<std::size_t>(count)) room.resize(static_cast<std::size_t>(count));
  return room.data();
}

/// y [M, N] = x [M, K] times the panels that pack(first column, panel) makes.
template <class Element, class Pack>
void multiply(const Element* x, std::int64_t x_stride, std::int64_t M, std::int64_t K,
              std::int64_t N, const Pack& pack, const float* bias, bool adds, Element* y) {
  const auto& own = kernels<Element>();
  const auto panels = cpu::round_up(N, cpu::kBlock) / cpu::kBlock;
  // Where panels are few for so many threads, rows are shared out too.
  const auto threads = static_cast<std::int64_t>(at::get_num_threads());
  const auto parts = std::clamp<std::int64_t>((2 * threads + panels - 1) / panels, 1,
                                              panels >= 2 * threads ? 1 : threads);
  const auto part_rows = cpu::round_up((M + parts - 1) / parts, 6);
  const auto grain = std::max<std::int64_t>(1, kWorthAThread / (cpu::kBlock * K * part_rows));
  at::parallel_for(0, panels * parts, grain, [&](std::int64_t begin, std::int64_t end) {
    auto* panel = scratch<Element>(cpu::round_up(K, 2) * cpu::kBlock);
    std::int64_t packed = -1;
    for (auto job = begin; job < end; ++job) {
      const auto column = job / parts * cpu::kBlock;
      if (packed != column) pack(column, panel);
      packed = column;
      const auto last = std::min(M, (job % parts + 1) * part_rows);
      const auto row = job % parts * part_rows;
      own.multiply(x + row * x_stride, x_stride, last - row, panel, K,
                   {.y = y + row * N + column,
                    .stride = N,
                    .columns = std::min(cpu::kBlock, N - column),
                    .bias = bias ? bias + column : nullptr,
                    .adds = adds});
    }
  });
}

template <class Element>
void product(const Tensor& x, const Tensor& weight, const float* bias, const Tensor& y) {
  const auto T = x.size(0), K = x.size(1), N = weight.size(0);
  const auto* weights = data<Element>(weight);
  const auto pack = [&](std::int64_t column, Element* panel) {
    kernels<Element>().pack_rows(weights + column * K, K, std::min(cpu::kBlock, N - column), K,
                                 panel);
  };
  multiply(data<Element>(x), K, T, K, N, pack, bias, false,
           static_cast<Element*>(y.mutable_data_ptr()));
}

template <class Element>
void input_gradient(const Tensor& grad, const Tensor& weight, const Tensor& result) {
  const auto T = grad.size(0), N = grad.size(1), K = weight.size(1);
  const auto* weights = data<Element>(weight);
  const auto pack = [&](std::int64_t column, Element* panel) {
    kernels<Element>().pack_columns(weights + column, K, N, std::min(cpu::kBlock, K - column),
                                    panel);
  };
  multiply(data<Element>(grad), N, T, N, K, pack, nullptr, false,
           static_cast<Element*>(result.mutable_data_ptr()));
}

template <class Element>
void weight_gradient(const Tensor& grad, const Tensor& x, bool adds, const Tensor& sum) {
  const auto T = grad.size(0), N = grad.size(1), K = x.size(1);
  const auto stride = cpu::round_up(T, 2);
  auto turned = torch::empty({N, stride}, grad.options());
  auto* to = static_cast<Element*>(turned.mutable_data_ptr());
  const auto* from = data<Element>(grad);
  at::parallel_for(0, N, 16, [&](std::int64_t begin, std::int64_t end) {
    kernels<Element>().transpose(from + begin, N, T, end - begin, to + begin * stride, stride);
    for (auto n = begin; T < stride && n < end; ++n) to[n * stride + T] = 0;
  });
  const auto* inputs = data<Element>(x);
  const auto pack = [&](std::int64_t column, Element* panel) {
    kernels<Element>().pack_columns(inputs + column, K, T, std::min(cpu::kBlock, K - column),
                                    panel);
  };
  multiply(static_cast<const Element*>(to), stride, N, T, K, pack, nullptr, adds,
           static_cast<Element*>(sum.mutable_data_ptr()));
}

bool is_float(const Tensor& x) { return x.scalar_type() == torch::kFloat32; }

/// Rows a [..., N] beside b [.., K].
bool serves(const Tensor& a, const Tensor& b) {
  const auto type = a.scalar_type();
  return a.is_cpu() && b.is_cpu() && type == b.scalar_type() &&
         (type == torch::kFloat32 || type == torch::kBFloat16) && cpu::avx512_kernels() &&
         a.size(-1) % 2 == 0 && b.size(-1) % 2 == 0 && a.numel() >= kEnoughRows * a.size(-1);
}

}  // namespace

bool has_cpu_products(const torch::Tensor& x, const torch::Tensor& weight) {
  return serves(x, weight) && weight.size(0) % 2 == 0 && weight.is_contiguous();
}

bool has_cpu_weight_gradient(const torch::Tensor& grad, const torch::Tensor& x) {
  return serves(grad, x);
}

torch::Tensor cpu_product(const torch::Tensor& x_, const torch::Tensor& weight,
                          const torch::Tensor& bias) {
  const auto x = x_.contiguous();
  const auto y = torch::empty({x.size(0), weight.size(0)}, x.options());
  const auto wide = bias.defined() ? bias.to(torch::kFloat32).contiguous() : Tensor();
  const float* added = bias.defined() ? wide.const_data_ptr<float>() : nullptr;
  (is_float(x) ? product<float> : product<std::uint16_t>)(x, weight, added, y);
  return y;
}

torch::Tensor cpu_input_gradient(const torch::Tensor& grad_, const torch::Tensor& weight) {
  const auto grad = grad_.contiguous();
  const auto result = torch::empty({grad.size(0), weight.size(1)}, grad.options());
  (is_float(grad) ? input_gradient<float> : input_gradient<std::uint16_t>)(grad, weight, result);
  return result;
}

torch::Tensor cpu_weight_gradient(const torch::Tensor& grad_, const torch::Tensor& x_,
                                  torch::Tensor sum) {
  const auto grad = grad_.contiguous(), x = x_.contiguous();
  const bool adds = sum.defined();
  if (!adds) sum = torch::empty({grad.size(1), x.size(1)}, grad.options());
  (is_float(grad) ? weight_gradient<float> : weight_gradient<std::uint16_t>)(grad, x, adds, sum);
  return sum;
}

}  // namespace llava::nn
