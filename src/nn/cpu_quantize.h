// Quantisation as both sets of kernels do it; every file that includes this has its own copy, made
// for the instructions it is compiled for.
#pragma once

#include "cpu_kernels.h"

namespace llava::nn::cpu {
namespace {

float float_of(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// The bfloat16 next to x, away from zero, so that quantised numbers stay in range.
std::uint16_t outward_bfloat16(float x) {
  return static_cast<std::uint16_t>((bits_of(x) + 0xffff) >> 16);
}
float widened(std::uint16_t x) { return float_of(static_cast<std::uint32_t>(x) << 16); }

void quantize_row(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                  std::int32_t* sums) {
  for (std::int64_t group = 0; group < inputs / kGroup; ++group, x += kGroup, values += kGroup) {
    float largest = 0;
    for (int i = 0; i < kGroup; ++i)
      largest = largest < __builtin_fabsf(x[i]) ? __builtin_fabsf(x[i]) : largest;
    const float inverse = largest > 0 ? 127 / largest : 0;
    std::int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      const auto value = static_cast<std::int32_t>(__builtin_nearbyintf(x[i] * inverse));
      values[i] = static_cast<std::int8_t>(value);
      sum += value;
    }
    scales[group] = largest / 127;
    sums[group] = sum;
  }
}

/// Where the scale of an output and the bytes of a group's inputs go.
struct Group {
  std::uint8_t* at;
  void set_scale(std::int64_t output, std::uint16_t scale) const {
    __builtin_memcpy(at + 2 * output, &scale, sizeof scale);
  }
  std::uint8_t& byte(std::int64_t output, std::int64_t step, std::int64_t i) const {
    return at[2 * kBlock + (step * kBlock + output) * 4 + i];
  }
};

void pack_int8(const float* weight, std::int64_t stride, std::int64_t rows, std::int64_t inputs,
               std::uint8_t* block) {
  for (std::int64_t k = 0; k < inputs; k += kGroup, block += kInt8GroupBytes) {
    const Group group{block};
    for (std::int64_t output = 0; output < kBlock; ++output) {
      const auto* w = weight + output * stride + k;
      float largest = 0;
      if (output < rows)
        for (int i = 0; i < kGroup; ++i)
          largest = largest < __builtin_fabsf(w[i]) ? __builtin_fabsf(w[i]) : largest;
      const auto scale = outward_bfloat16(largest / 127);
      const float inverse = largest > 0 ? 1 / widened(scale) : 0;
      group.set_scale(output, scale);
      for (int i = 0; i < kGroup; ++i)
        group.byte(output, i / 4, i % 4) = static_cast<std::uint8_t>(
            128 + (output < rows ? static_cast<int>(__builtin_nearbyintf(w[i] * inverse)) : 0));
    }
  }
}

float clamped(float x) { return x < -8 ? -8 : x > 7 ? 7 : x; }

/// The scale with the smallest squared error among some that let the largest number be -8 or a
/// little beyond the range, which the many small ones gain by.
std::uint16_t int4_scale(const float* w) {
  float extreme = 0;
  for (int i = 0; i < kGroup; ++i)
    extreme = __builtin_fabsf(extreme) < __builtin_fabsf(w[i]) ? w[i] : extreme;
  std::uint16_t best = 0;
  float least = 3.0e38F;
  for (int trial = 0; trial < 8; ++trial) {
    const auto scale = outward_bfloat16(extreme / (-6.5F - 0.3F * static_cast<float>(trial)));
    const float width = widened(scale), inverse = width != 0 ? 1 / width : 0;
    float error = 0;
    for (int i = 0; i < kGroup; ++i) {
      const float missed = w[i] - width * clamped(__builtin_nearbyintf(w[i] * inverse));
      error += missed * missed;
    }
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

void pack_int4(const float* weight, std::int64_t stride, std::int64_t rows, std::int64_t inputs,
               std::uint8_t* block) {
  for (std::int64_t k = 0; k < inputs; k += kGroup, block += kInt4GroupBytes) {
    const Group group{block};
    for (std::int64_t output = 0; output < kBlock; ++output) {
      const auto* w = weight + output * stride + k;
      const auto scale = output < rows ? int4_scale(w) : std::uint16_t{0};
      const float inverse = widened(scale) != 0 ? 1 / widened(scale) : 0;
      const auto nibble = [&](int i) {
        return output < rows ? 8 + static_cast<int>(clamped(__builtin_nearbyintf(w[i] * inverse)))
                             : 8;
      };
      group.set_scale(output, scale);
      for (int i = 0; i < kGroup / 2; ++i)
        group.byte(output, i / 4, i % 4) =
            static_cast<std::uint8_t>(nibble(i) | nibble(i + kGroup / 2) << 4);
    }
  }
}

}  // namespace
}  // namespace llava::nn::cpu
