#include "eight_bit.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

namespace llava::train {
namespace {

constexpr float kTopSigned = 127, kTopUnsigned = 255;

constexpr float fourth_power(float x) { return x * x * x * x; }
float fourth_root(float x) { return std::sqrt(std::sqrt(x)); }

/// Bits of a number and a step, well mixed, below 2^24.  Source: Chris Wellons, hash-prospector,
/// "lowbias32", first half.
constexpr std::uint32_t random_bits(std::uint32_t number, std::uint32_t step) {
  std::uint32_t x = number * 0x9E3779B1u + step * 0x85EBCA77u;
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  return x >> 8;
}
constexpr float kShare = 1.0F / (1 << 24);

/// Everything of an update that is the same for all values.
struct Coefficients {
  std::uint32_t step;
  float keep1, add1, keep2, add2, rate, root_correction, epsilon, decay;

  explicit Coefficients(const AdamStep& adam) {
    const double step = adam.step.item<float>();
    this->step = static_cast<std::uint32_t>(step);
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

/// One block: decode, update, encode. `first_index` is that of its first value in the tensor.
/// Codes are rounded up or down at random, by how near they are: rounded to the nearest, a moment
/// that changes by less than half a code a step would never change.
__attribute__((target_clones("avx512f", "avx2", "default"))) void update_block(
    const Coefficients& c, std::int64_t first_index, std::int64_t count, float* weight,
    const float* gradient, std::int8_t* avg, float& avg_scale, std::uint8_t* sq, float& sq_scale) {
  float first[kMomentBlock], root[kMomentBlock];
  const float decode1 = avg_scale / fourth_power(kTopSigned);
  const float decode2 = sq_scale / fourth_power(kTopUnsigned);
  float top1 = 0, top2 = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float code1 = avg[i], code2 = sq[i];
    const float old_first = std::copysign(decode1 * fourth_power(code1), code1);
    const float old_root = decode2 * fourth_power(code2);
    first[i] = c.keep1 * old_first + c.add1 * gradient[i];
    root[i] = std::sqrt(c.keep2 * old_root * old_root + c.add2 * gradient[i] * gradient[i]);
    weight[i] = c.decay * weight[i] - c.rate * first[i] / (root[i] * c.root_correction + c.epsilon);
    top1 = std::max(top1, std::abs(first[i]));
    top2 = std::max(top2, root[i]);
  }
  avg_scale = top1;
  sq_scale = top2;
  const float encode1 = top1 > 0 ? 1 / top1 : 0, encode2 = top2 > 0 ? 1 / top2 : 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = random_bits(static_cast<std::uint32_t>(first_index + i), c.step);
    const float dither = static_cast<float>(bits) * kShare;
    const float size1 = fourth_root(std::abs(first[i]) * encode1) * kTopSigned;
    const auto code1 = static_cast<std::int32_t>(std::min(size1 + dither, kTopSigned));
    avg[i] = static_cast<std::int8_t>(first[i] < 0 ? -code1 : code1);
    // Never rounded to zero unless it is: an update divides by this.
    const float size2 = fourth_root(root[i] * encode2) * kTopUnsigned;
    const auto code2 = static_cast<std::int32_t>(std::min(size2 + dither, kTopUnsigned));
    sq[i] = static_cast<std::uint8_t>(code2 + (code2 == 0 && root[i] > 0));
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
      update_block(coefficients, at, std::min(kMomentBlock, count - at), w + at, g + at, m + at,
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
  const auto old_first = (code1 / kTopSigned).pow(4).copysign_(code1).mul_(column(avg.scales));
  const auto old_root = (code2 / kTopUnsigned).pow(4).mul_(column(sq.scales));
  const auto first = old_first * adam.beta1 + g * (1 - adam.beta1);
  const auto root = (old_root * old_root * adam.beta2 + g * g * (1 - adam.beta2)).sqrt();
  const auto correction1 = 1 - torch::pow(adam.beta1, adam.step);
  const auto correction2 = (1 - torch::pow(adam.beta2, adam.step)).sqrt();
  const auto change =
      first / (root / correction2 + adam.epsilon) * (adam.learning_rate / correction1);
  const auto decayed = weight * (1 - adam.learning_rate * adam.weight_decay);

  const auto share = [&](const torch::Tensor& x, const torch::Tensor& scales) {
    return (x / column(scales)).nan_to_num_(0.0).sqrt_().sqrt_();  // a block of zeros: 0 / 0
  };
  const auto avg_scales = first.abs().amax(1), sq_scales = root.amax(1);
  constexpr std::int64_t kMask = 0xFFFFFFFF;  // random_bits() in 64-bit integers
  auto bits = torch::arange(blocks * kMomentBlock, weight.options().dtype(torch::kInt64));
  bits = (bits * 0x9E3779B1 + adam.step.to(torch::kInt64) * 0x85EBCA77).bitwise_and_(kMask);
  bits = bits.bitwise_xor_(bits.bitwise_right_shift(16)).mul_(0x7FEB352D).bitwise_and_(kMask);
  bits = bits.bitwise_xor_(bits.bitwise_right_shift(15)).bitwise_right_shift_(8);
  const auto dither = (bits * kShare).view({blocks, kMomentBlock});
  const auto coded = [&](const torch::Tensor& x, const torch::Tensor& scales, float top) {
    return (share(x, scales) * top).add_(dither).clamp_max_(top).floor_();
  };
  const auto avg_codes = coded(first.abs(), avg_scales, kTopSigned) * first.sign();
  auto sq_codes = coded(root, sq_scales, kTopUnsigned);
  sq_codes = torch::where(sq_codes == 0, (root > 0).to(sq_codes.scalar_type()), sq_codes);

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
