#include "cpu_training_rows.h"

#include "cpu_training_row_kernels.h"
#include "inference.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace llava::nn {
namespace {

using torch::Tensor;

constexpr std::int64_t kGrain = 16384;    // numbers worth waking a thread for
constexpr std::int64_t kRowsOfASum = 64;  // whose weight gradients are summed before the others'

template <class Element>
const cpu::TrainingRowKernels<Element>& kernels();
template <>
const cpu::TrainingRowKernels<float>& kernels<float>() {
  return *cpu::float_training_rows();
}
template <>
const cpu::TrainingRowKernels<std::uint16_t>& kernels<std::uint16_t>() {
  return *cpu::bfloat16_training_rows();
}

template <class Element>
const Element* data(const Tensor& x) {
  return static_cast<const Element*>(x.const_data_ptr());
}

/// Where row `row` of what is wanted begins, or nullptr.
template <class Element>
Element* wanted_row(const Tensor& x, std::int64_t row, std::int64_t width) {
  return x.defined() ? static_cast<Element*>(x.mutable_data_ptr()) + row * width : nullptr;
}

template <class Work>
void for_rows(std::int64_t rows, std::int64_t width, const Work& work) {
  at::parallel_for(0, rows, std::max<std::int64_t>(1, kGrain / width),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (auto row = begin; row < end; ++row) work(row);
                   });
}

/// work(type's Element) for a tensor's type.
template <class Work>
void with_element(const Tensor& x, const Work& work) {
  if (x.scalar_type() == torch::kFloat32) {  // NOLINT(bugprone-branch-clone): types differ
    work(float());
  } else {
    work(std::uint16_t());
  }
}

}  // namespace

bool has_cpu_training_rows(const torch::Tensor& x) {
  const auto type = x.scalar_type();
  return is_part_of_training() && x.is_cpu() && x.numel() > 0 &&
         (type == torch::kFloat32 || type == torch::kBFloat16) && cpu::float_training_rows();
}

std::pair<torch::Tensor, torch::Tensor> cpu_training_rms_norm(const torch::Tensor& x_,
                                                              const torch::Tensor& weight_,
                                                              double eps) {
  const auto x = x_.contiguous(), weight = weight_.contiguous();
  const auto width = x.size(-1), rows = x.numel() / width;
  const auto y = torch::empty_like(x);
  const auto scale = torch::empty({rows}, x.options().dtype(torch::kFloat32));
  with_element(x, [&](auto element) {
    using Element = decltype(element);
    for_rows(rows, width, [&](std::int64_t row) {
      *wanted_row<float>(scale, row, 1) =
          kernels<Element>().rms_norm(data<Element>(x) + row * width, data<Element>(weight), width,
                                      static_cast<float>(eps), wanted_row<Element>(y, row, width));
    });
  });
  return {y, scale};
}

RmsNormGradients cpu_rms_norm_gradients(const torch::Tensor& x_, const torch::Tensor& weight_,
                                        const torch::Tensor& scale, const torch::Tensor& grad_,
                                        bool wants_x, bool wants_weight) {
  const auto x = x_.contiguous(), weight = weight_.contiguous(), grad = grad_.contiguous();
  const auto width = x.size(-1), rows = x.numel() / width;
  const auto parts = (rows + kRowsOfASum - 1) / kRowsOfASum;
  RmsNormGradients found;
  Tensor sums;  // of the weight's, by some rows each
  if (wants_x) found.x = torch::empty_like(x);
  if (wants_weight) sums = torch::zeros({parts, width}, scale.options());
  with_element(x, [&](auto element) {
    using Element = decltype(element);
    for_rows(parts, kRowsOfASum * width, [&](std::int64_t part) {
      for (auto row = part * kRowsOfASum; row < std::min(rows, (part + 1) * kRowsOfASum); ++row)
        kernels<Element>().rms_norm_gradients(
            data<Element>(x) + row * width, data<Element>(weight),
            data<Element>(grad) + row * width, width, data<float>(scale)[row],
            {wanted_row<Element>(found.x, row, width), wanted_row<float>(sums, part, width)});
    });
  });
  if (!wants_weight) return found;
  auto sum = sums[0];
  for (std::int64_t part = 1; part < parts; ++part) sum += sums[part];
  found.weight = sum.to(weight.scalar_type());
  return found;
}

torch::Tensor cpu_training_swiglu(const torch::Tensor& gate_, const torch::Tensor& up_) {
  const auto gate = gate_.contiguous(), up = up_.contiguous();
  const auto width = gate.size(-1);
  const auto y = torch::empty_like(gate);
  with_element(gate, [&](auto element) {
    using Element = decltype(element);
    for_rows(gate.numel() / width, width, [&](std::int64_t row) {
      kernels<Element>().swiglu(data<Element>(gate) + row * width, data<Element>(up) + row * width,
                                width, wanted_row<Element>(y, row, width));
    });
  });
  return y;
}

std::pair<torch::Tensor, torch::Tensor> cpu_swiglu_gradients(const torch::Tensor& gate_,
                                                             const torch::Tensor& up_,
                                                             const torch::Tensor& grad_,
                                                             bool wants_gate, bool wants_up) {
  const auto gate = gate_.contiguous(), up = up_.contiguous(), grad = grad_.contiguous();
  const auto width = gate.size(-1);
  Tensor grad_gate, grad_up;
  if (wants_gate) grad_gate = torch::empty_like(gate);
  if (wants_up) grad_up = torch::empty_like(up);
  with_element(gate, [&](auto element) {
    using Element = decltype(element);
    for_rows(gate.numel() / width, width, [&](std::int64_t row) {
      kernels<Element>().swiglu_gradients(
          data<Element>(gate) + row * width, data<Element>(up) + row * width,
          data<Element>(grad) + row * width, width,
          {wanted_row<Element>(grad_gate, row, width), wanted_row<Element>(grad_up, row, width)});
    });
  });
  return {grad_gate, grad_up};
}

torch::Tensor cpu_cross_entropy(const torch::Tensor& logits, const torch::Tensor& tokens_,
                                bool wants_gradients) {
  const auto tokens = tokens_.contiguous();
  const auto rows = logits.size(0), width = logits.size(1);
  const auto losses = torch::empty({rows}, logits.options().dtype(torch::kFloat32));
  with_element(logits, [&](auto element) {
    using Element = decltype(element);
    for_rows(rows, width, [&](std::int64_t row) {
      *wanted_row<float>(losses, row, 1) =
          kernels<Element>().cross_entropy(wanted_row<Element>(logits, row, width), width,
                                           data<std::int64_t>(tokens)[row], wants_gradients);
    });
  });
  return losses;
}

torch::Tensor cpu_turn(const torch::Tensor& x_, const torch::Tensor& cos_,
                       const torch::Tensor& sin_, double sign) {
  const auto x = x_.contiguous(), cos = cos_.contiguous(), sin = sin_.contiguous();
  const auto T = x.size(0), H = x.size(1), E = x.size(2);
  const auto y = torch::empty_like(x);
  with_element(x, [&](auto element) {
    using Element = decltype(element);
    for_rows(T, H * E, [&](std::int64_t t) {
      for (auto head = t * H; head < (t + 1) * H; ++head)
        kernels<Element>().rotate(data<Element>(x) + head * E, data<Element>(cos) + t * (E / 2),
                                  data<Element>(sin) + t * (E / 2), E / 2, static_cast<float>(sign),
                                  wanted_row<Element>(y, head, E));
    });
  });
  return y;
}

}  // namespace llava::nn
