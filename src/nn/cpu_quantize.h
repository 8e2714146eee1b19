// Quantisation as both sets of kernels do it; every file that includes this has its own copy, made
// for the instructions it is compiled for.
#pragma once

#include "cpu_kernels.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

// ── Sixteen numbers at once, by the same operations in both sets ────────────────────────────────

using Lanes = float __attribute__((vector_size(64)));
constexpr int kLanes = 16;

void load_lanes(const float* x, Lanes& to) { __builtin_memcpy(&to, x, sizeof to); }

/// To the nearest whole numbers.
void round_lanes(Lanes& x) {
#ifdef __AVX512F__
  x = reinterpret_cast<Lanes>(
      _mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_nearbyintf(x[i]);
#endif
}

float largest_of(const Lanes& x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps(reinterpret_cast<const __m512&>(x));
#else
  float largest = x[0];
  for (int i = 1; i < kLanes; ++i) largest = largest < x[i] ? x[i] : largest;
  return largest;
#endif
}

float sum_of(const Lanes& x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(reinterpret_cast<const __m512&>(x));
#else
  Lanes sums = x;
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
#endif
}

/// Whole numbers as bytes.
void store_lanes(const Lanes& x, std::int8_t* to) {
#ifdef __AVX512F__
  const auto wide = _mm512_cvtps_epi32(reinterpret_cast<const __m512&>(x));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(wide));
#else
  for (int i = 0; i < kLanes; ++i)
    to[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(x[i]));
#endif
}

// ── Scales ──────────────────────────────────────────────────────────────────────────────────────

struct Scale {
  float size, inverse;
};
Scale scale_of(float size) { return {size, size > 0 || size < 0 ? 1 / size : 0}; }

/// N numbers of a group, and what becomes of them: multiples of a scale from `kLeast` to `kMost`.
template <int N, int kLeast, int kMost>
struct Numbers {
  Lanes x[N / kLanes];

  explicit Numbers(const float* from) {
    for (int i = 0; i < N / kLanes; ++i) load_lanes(from + i * kLanes, x[i]);
  }

  float largest() const {
    Lanes sizes = {};
    for (const auto& lanes : x) {
      const Lanes size = lanes < 0 ? -lanes : lanes;
      sizes = sizes < size ? size : sizes;
    }
    return largest_of(sizes);
  }

  /// The number of the largest size, with its sign.
  float extreme() const {
    const float size = largest();
    bool has_positive = false;
    for (const auto& lanes : x)
      for (int i = 0; i < kLanes; ++i) has_positive = has_positive || lanes[i] == size;
    return has_positive ? size : -size;
  }

  void multiples(float inverse, Lanes (&to)[N / kLanes]) const {
    for (int i = 0; i < N / kLanes; ++i) {
      to[i] = x[i] * inverse;
      round_lanes(to[i]);
      if constexpr (kMost < 127) {
        constexpr float least = kLeast, most = kMost;
        const Lanes low = to[i] < least ? Lanes{} + least : to[i];
        to[i] = low > most ? Lanes{} + most : low;
      }
    }
  }

  /// That of trial(0) ... trial(kTrials - 1) with the smallest squared error.
  template <int kTrials, class Trial>
  Scale best(const Trial& trial) const {
    Scale best = trial(0);
    float least = error(best);
    for (int t = 1; t < kTrials; ++t) {
      const Scale scale = trial(t);
      const float missed = error(scale);
      const bool is_better = missed < least;
      best.size = is_better ? scale.size : best.size;
      best.inverse = is_better ? scale.inverse : best.inverse;
      least = is_better ? missed : least;
    }
    return best;
  }

  float error(Scale scale) const {
    Lanes whole[N / kLanes], squares = {};
    multiples(scale.inverse, whole);
    for (int i = 0; i < N / kLanes; ++i) {
      const Lanes missed = x[i] - whole[i] * scale.size;
      squares += missed * missed;
    }
    return sum_of(squares);
  }

  /// The multiples as bytes.
  void store(Scale scale, std::int8_t* to) const {
    Lanes whole[N / kLanes];
    multiples(scale.inverse, whole);
    for (int i = 0; i < N / kLanes; ++i) store_lanes(whole[i], to + i * kLanes);
  }
};

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

std::uint16_t bfloat16_of(float x) { return static_cast<std::uint16_t>(bits_of(x) >> 16); }

using Int8Numbers = Numbers<group_inputs(8), -127, 127>;
using Int4Numbers = Numbers<group_inputs(4), -8, 7>;

/// The best of eight bfloat16 numbers that keep all in range.
Scale int8_scale(const Int8Numbers& numbers) {
  const auto least = outward_bfloat16(numbers.largest() / 127);
  if (least == 0) return {0, 0};
  return numbers.best<8>(
      [&](int i) { return scale_of(widened(static_cast<std::uint16_t>(least + i))); });
}

/// The best of some that let the largest number be -8 or a little beyond the range, which the many
/// small ones gain by.
Scale int4_scale(const Int4Numbers& numbers) {
  const float extreme = numbers.extreme();
  return numbers.best<8>([&](int i) {
    return scale_of(widened(outward_bfloat16(extreme / (-6.5F - 0.3F * static_cast<float>(i)))));
  });
}

/// Bytes of N numbers and their scale, all zero unless `is_there`.
template <class Numbers, int N>
float quantize(const float* w, bool is_there, Scale (*choose)(const Numbers&),
               std::int8_t (&values)[N]) {
  __builtin_memset(values, 0, sizeof values);
  if (!is_there) return 0;
  const Numbers numbers(w);
  const auto scale = choose(numbers);
  numbers.store(scale, values);
  return scale.size;
}

void pack_int8(const float* weight, std::int64_t stride, std::int64_t rows, std::int64_t inputs,
               std::uint8_t* block) {
  constexpr int kInputs = group_inputs(8);
  std::int8_t values[kInputs];
  for (std::int64_t k = 0; k < inputs; k += kInputs, block += group_bytes(8)) {
    const Group group{block};
    for (std::int64_t output = 0; output < kBlock; ++output) {
      const float scale = quantize(weight + output * stride + k, output < rows, int8_scale, values);
      group.set_scale(output, bfloat16_of(scale));
      for (int i = 0; i < kInputs; ++i)
        group.byte(output, i / 4, i % 4) = static_cast<std::uint8_t>(128 + values[i]);
    }
  }
}

void pack_int4(const float* weight, std::int64_t stride, std::int64_t rows, std::int64_t inputs,
               std::uint8_t* block) {
  constexpr int kInputs = group_inputs(4);
  std::int8_t values[kInputs];
  for (std::int64_t k = 0; k < inputs; k += kInputs, block += group_bytes(4)) {
    const Group group{block};
    for (std::int64_t output = 0; output < kBlock; ++output) {
      const float scale = quantize(weight + output * stride + k, output < rows, int4_scale, values);
      group.set_scale(output, bfloat16_of(scale));
      for (int i = 0; i < kInputs / 2; ++i)
        group.byte(output, i / 4, i % 4) =
            static_cast<std::uint8_t>((8 + values[i]) | (8 + values[i + kInputs / 2]) << 4);
    }
  }
}

}  // namespace
}  // namespace llava::nn::cpu
