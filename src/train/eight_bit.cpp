#include "eight_bit.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

namespace llava::train {
namespace {

constexpr float kTopSigned = 127, kTopUnsigned = 255;

/// Everything of an update that is the same for all values.
struct Coefficients {
  float keep1, add1, keep2, add2, rate, root_correction, epsilon, decay;

  explicit Coefficients(const AdamStep& adam) {
    const double step = adam.step.item<float>();
    keep1 = static_cast<float>(adam.beta1);
    add1 = static_cast<float>(1 - adam.beta1);
    keep2 = static_cast<float>(adam.beta2);
    add2 = static_cast<float>(1 - adam.beta2);
    rate = static_cast<float>(adam.learning_rate / (1 - std::pow(adam.beta1, step)));
    root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(adam.beta2, step)));
    epsilon = static_cast<float>(adam.epsilon);
    decay = static_cast<float>(1 - adam.learning_rate * adam.weight_decay);
  }
};

/// One block: decode, update, encode.
void update_block(const Coefficients& c, std::int64_t count, float* weight, const float* gradient,
                  std::int8_t* avg, float& avg_scale, std::uint8_t* sq, float& sq_scale) {
  float first[kMomentBlock], root[kMomentBlock];
  const float decode1 = avg_scale / (kTopSigned * kTopSigned);
  const float decode2 = sq_scale / (kTopUnsigned * kTopUnsigned);
  float top1 = 0, top2 = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float code1 = avg[i], code2 = sq[i];
    const float old_root = decode2 * code2 * code2;
    first[i] = c.keep1 * (decode1 * code1 * std::abs(code1)) + c.add1 * gradient[i];
    root[i] = std::sqrt(c.keep2 * old_root * old_root + c.add2 * gradient[i] * gradient[i]);
    weight[i] = c.decay * weight[i] - c.rate * first[i] / (root[i] * c.root_correction + c.epsilon);
    top1 = std::max(top1, std::abs(first[i]));
    top2 = std::max(top2, root[i]);
  }
  avg_scale = top1;
  sq_scale = top2;
  const float encode1 = top1 > 0 ? 1 / top1 : 0, encode2 = top2 > 0 ? 1 / top2 : 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float size1 = std::sqrt(std::abs(first[i]) * encode1) * kTopSigned + 0.5F;
    const auto code1 = static_cast<std::int32_t>(size1);
    avg[i] = static_cast<std::int8_t>(first[i] < 0 ? -code1 : code1);
    // Rounded up, so that a moment that is not zero never becomes it: an update divides by this.
    const float size2 = std::sqrt(root[i] * encode2) * kTopUnsigned;
    const auto code2 = static_cast<std::int32_t>(size2);
    sq[i] = static_cast<std::uint8_t>(code2 + (static_cast<float>(code2) < size2 && code2 < 255));
  }
}

}  // namespace

void adam_8bit_step(const AdamStep& adam, const torch::Tensor& gradient,
                    const torch::Tensor& weight, const EightBitMoment& avg,
                    const EightBitMoment& sq) {
  if (!weight.is_cpu()) return adam_8bit_step_by_tensors(adam, gradient, weight, avg, sq);
  if (adam.skip.item<float>() != 0) return;
  const Coefficients coefficients(adam);
  const torch::Tensor flat = gradient.contiguous();
  const std::int64_t count = weight.numel();
  auto* w = weight.data_ptr<float>();
  const auto* g = flat.data_ptr<float>();
  auto* m = avg.codes.data_ptr<std::int8_t>();
  auto* v = sq.codes.data_ptr<std::uint8_t>();
  auto* m_scale = avg.scales.data_ptr<float>();
  auto* v_scale = sq.scales.data_ptr<float>();
  at::parallel_for(0, moment_blocks(count), 128, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t at = block * kMomentBlock;
      update_block(coefficients, std::min(kMomentBlock, count - at), w + at, g + at, m + at,
                   m_scale[block], v + at, v_scale[block]);
    }
  });
}

void adam_8bit_step_by_tensors(const AdamStep& adam, const torch::Tensor& gradient,
                               const torch::Tensor& weight, const EightBitMoment& avg,
                               const EightBitMoment& sq) {
  const std::int64_t count = weight.numel(), blocks = moment_blocks(count);
  const auto as_blocks = [&](const torch::Tensor& x) {  // [...] -> [blocks, 256], zeros at the end
    const auto flat = x.reshape({-1}).to(torch::kFloat32);
    return torch::constant_pad_nd(flat, {0, blocks * kMomentBlock - count})
        .view({blocks, kMomentBlock});
  };
  const auto from_blocks = [&](const torch::Tensor& x) {  // back again
    return x.reshape({-1}).narrow(0, 0, count).view(weight.sizes());
  };
  const auto column = [](const torch::Tensor& scales) { return scales.unsqueeze(1); };

  const auto g = as_blocks(gradient), code1 = as_blocks(avg.codes), code2 = as_blocks(sq.codes);
  const auto old_first = code1 * code1.abs() * column(avg.scales) / (kTopSigned * kTopSigned);
  const auto old_root = code2 * code2 * column(sq.scales) / (kTopUnsigned * kTopUnsigned);
  const auto first = old_first * adam.beta1 + g * (1 - adam.beta1);
  const auto root = (old_root * old_root * adam.beta2 + g * g * (1 - adam.beta2)).sqrt();
  const auto correction1 = 1 - torch::pow(adam.beta1, adam.step);
  const auto correction2 = (1 - torch::pow(adam.beta2, adam.step)).sqrt();
  const auto change =
      first / (root / correction2 + adam.epsilon) * (adam.learning_rate / correction1);
  const auto decayed = weight * (1 - adam.learning_rate * adam.weight_decay);

  const auto share = [&](const torch::Tensor& x, const torch::Tensor& scales) {
    return (x / column(scales)).nan_to_num_(0.0).sqrt_();  // a block of zeros: 0 / 0
  };
  const auto avg_scales = first.abs().amax(1), sq_scales = root.amax(1);
  const auto avg_codes = (share(first.abs(), avg_scales) * kTopSigned).round_() * first.sign();
  const auto sq_codes = (share(root, sq_scales) * kTopUnsigned).ceil_().clamp_max_(kTopUnsigned);

  const auto skip = adam.skip != 0;
  const auto store = [&](const torch::Tensor& to, const torch::Tensor& value) {
    to.copy_(torch::where(skip, to, value.to(to.scalar_type())));
  };
  store(weight, decayed - from_blocks(change));
  store(avg.scales, avg_scales);
  store(sq.scales, sq_scales);
  store(avg.codes, from_blocks(avg_codes));
  store(sq.codes, from_blocks(sq_codes));
}

}  // namespace llava::train
