// Vectors of 16 floats as the AVX-512 kernels use them; every file that includes this has its own
// copy, so only files compiled for AVX-512 may.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace llava::nn::cpu {
namespace {

/// Lanes of 16 that are among the `left` to do.
inline __mmask16 first_lanes(std::int64_t left) {
  return static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
}

/// 16 bfloat16 numbers as floats.
inline __m512 widen(const void* from, __mmask16 mask = 0xffff) {
  const auto bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/// The pair of bfloat16 numbers, or the float, at `from`, in all lanes.
inline __m512i broadcast(const void* from) {
  std::int32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline __m512 read(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 read(const std::uint16_t* from, __mmask16 mask) { return widen(from, mask); }
inline void write(float* to, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(to, mask, x); }
inline void write(std::uint16_t* to, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

/// e^x for x <= 0, to about 2 units in the last place. Taylor in r, |r| <= ln 2 / 2.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0F));
  const auto n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)), 0);
  auto r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);  // ln 2 in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  constexpr float kTaylor[] = {1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};
  auto p = _mm512_set1_ps(1.0F / 720);
  for (const float c : kTaylor) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

/// A result of an operation on bfloat16 numbers, as floats.
inline __m512 rounded(__m512 x) {
  const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/// 1 / (1 + e^-x), by the exponential of a number that is not positive.
inline __m512 sigmoid(__m512 x) {
  const auto one = _mm512_set1_ps(1);
  const auto power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const auto small = _mm512_div_ps(power, _mm512_add_ps(one, power));  // of -|x|
  const auto negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_sub_ps(one, small), negative, small);
}

}  // namespace
}  // namespace llava::nn::cpu
