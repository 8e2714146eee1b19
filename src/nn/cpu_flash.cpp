#include "cpu_flash.h"

#include "cpu_flash_kernels.h"
#include "inference.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

namespace llava::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kLargestHead = 256;

/// Element: float or std::uint16_t.
template <class Element>
const Element* data(const Tensor& x) {
  return static_cast<const Element*>(x.const_data_ptr());
}
template <class Element>
Element* mutable_data(const Tensor& x) {
  return static_cast<Element*>(x.mutable_data_ptr());
}

struct Inputs {
  Tensor q, k, v;  // contiguous
  std::vector<std::int64_t> starts;
  bool is_causal;
};

/// One head of keys and values in one row, with where its numbers begin.
template <class Element>
struct Part {
  cpu::FlashRow<Element> row;
  std::int64_t q, kv, log_sum;
};

template <class Element>
Part<Element> part_of(const Inputs& in, std::int64_t row, std::int64_t kv_head) {
  const auto T = in.q.size(0), H = in.q.size(1), E = in.q.size(2), K = in.k.size(1);
  const auto start = in.starts[row], groups = H / K;
  Part<Element> part;
  part.q = (start * H + kv_head * groups) * E;
  part.kv = (start * K + kv_head) * E;
  part.log_sum = kv_head * groups * T + start;
  part.row = {.q = data<Element>(in.q) + part.q,
              .k = data<Element>(in.k) + part.kv,
              .v = data<Element>(in.v) + part.kv,
              .stride = H * E,
              .kv_stride = K * E,
              .num_heads = groups,
              .length = in.starts[row + 1] - start,
              .head_size = E,
              .is_causal = in.is_causal,
              .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(E))),
              .log_sum_stride = T};
  return part;
}

/// Runs work(part, scratch) for every row and head of keys. Rows differ in length, so a thread is
/// given heads, with all rows of each.
template <class Element, class Work>
void for_parts(const Inputs& in, std::int64_t (*scratch_of)(std::int64_t, std::int64_t),
               const Work& work) {
  const auto rows = static_cast<std::int64_t>(in.starts.size()) - 1;
  at::parallel_for(0, rows * in.k.size(1), 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local std::vector<float> scratch;
    for (auto i = begin; i < end; ++i) {
      const auto part = part_of<Element>(in, i % rows, i / rows);
      const auto needed = static_cast<std::size_t>(scratch_of(part.row.length, in.q.size(2)));
      if (scratch.size() < needed) scratch.resize(needed);
      work(part, scratch.data());
    }
  });
}

template <class Element>
void forward(const Inputs& in, const Tensor& output, const Tensor& log_sums) {
  for_parts<Element>(in, cpu::flash_forward_scratch, [&](const auto& part, float* scratch) {
    cpu::flash_forward(part.row, mutable_data<Element>(output) + part.q,
                       log_sums.data_ptr<float>() + part.log_sum, scratch);
  });
}

/// What forward leaves, and what comes back for it.
struct Results {
  Tensor output, log_sums, grad;
};

template <class Element>
void backward(const Inputs& in, const Results& of, const variable_list& grads) {
  for_parts<Element>(in, cpu::flash_backward_scratch, [&](const auto& part, float* scratch) {
    const cpu::FlashGradients<Element> gradients{
        .output = data<Element>(of.output) + part.q,
        .grad = data<Element>(of.grad) + part.q,
        .log_sums = of.log_sums.const_data_ptr<float>() + part.log_sum,
        .grad_q = mutable_data<Element>(grads[0]) + part.q,
        .grad_k = mutable_data<Element>(grads[1]) + part.kv,
        .grad_v = mutable_data<Element>(grads[2]) + part.kv};
    cpu::flash_backward(part.row, gradients, scratch);
  });
}

bool is_float(const Tensor& x) { return x.scalar_type() == torch::kFloat32; }

struct FlashFunction : torch::autograd::Function<FlashFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::vector<std::int64_t>& starts, bool is_causal) {
    const Inputs in{q.contiguous(), k.contiguous(), v.contiguous(), starts, is_causal};
    const auto output = torch::empty_like(in.q);
    const auto log_sums =
        torch::empty({q.size(1), q.size(0)}, q.options().dtype(torch::kFloat32));  // [H, T]
    (is_float(q) ? nn::forward<float> : nn::forward<std::uint16_t>)(in, output, log_sums);
    context->save_for_backward({in.q, in.k, in.v, output, log_sums});
    context->saved_data["starts"] = starts;
    context->saved_data["is_causal"] = is_causal;
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Inputs in{saved[0], saved[1], saved[2], context->saved_data["starts"].toIntVector(),
                    context->saved_data["is_causal"].toBool()};
    const Results of{saved[3], saved[4], grads[0].contiguous()};
    variable_list found{torch::empty_like(in.q), torch::empty_like(in.k), torch::empty_like(in.v)};
    (is_float(in.q) ? nn::backward<float> : nn::backward<std::uint16_t>)(in, of, found);
    found.resize(5);
    return found;
  }
};

}  // namespace

bool has_cpu_flash(const torch::Tensor& q, const torch::Tensor& k) {
  const auto type = q.scalar_type();
  return is_part_of_training() && q.is_cpu() && k.is_cpu() && type == k.scalar_type() &&
         (type == torch::kFloat32 || type == torch::kBFloat16) && q.size(-1) % 2 == 0 &&
         q.size(-1) <= kLargestHead && cpu::has_flash();
}

torch::Tensor cpu_flash(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<std::int64_t>& starts, bool is_causal) {
  return FlashFunction::apply(q, k, v, starts, is_causal);
}

}  // namespace llava::nn
