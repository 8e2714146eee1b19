// The loops of resample.h for x86 processors with AVX2.
//
// A weight has up to 24 bits, the 16-bit multiply-add (vpmaddwd) takes 15 and a sign. So a weight
// is split, w = high * 2^12 + low with 0 <= low < 2^12, both sums run in 32 bits, and
// (sum_high << 12) + sum_low is the sum of the plain loop modulo 2^32; that sum fits, so they are
// equal.
#include "resample.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define LLAVA_AVX2 __attribute__((target("avx2")))

namespace llava::media {
namespace {

constexpr int kLowBits = 12;
constexpr std::int32_t kHalf = 1 << (kWeightBits - 1);

/// Four weights as 16 bytes: their high parts, then their low parts.
LLAVA_AVX2 inline __m128i split(__m128i weights) {
  const __m128i high = _mm_srai_epi32(weights, kLowBits);
  const __m128i low = _mm_and_si128(weights, _mm_set1_epi32((1 << kLowBits) - 1));
  return _mm_packs_epi32(high, low);
}

template <int rows>
LLAVA_AVX2 void across_rows(const std::uint8_t* const* source, std::uint8_t* const* target,
                            const Taps& taps, const Colour& background) {
  // Pixels 0, 1 in the low half and 2, 3 in the high half, as pairs R R G G B B of 16 bits.
  const __m256i pairs =
      _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7,
                       -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i pick_high = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const __m256i pick_low = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i colour = _mm_setr_epi32(background[0], background[1], background[2], 0);
  for (std::int64_t i = 0; i < taps.outputs(); ++i) {
    const std::int32_t* weights = taps.weights.data() + i * taps.stride;
    const std::int64_t begin = 3 * static_cast<std::int64_t>(taps.begin[i]);
    __m256i high[rows], low[rows];
    for (int r = 0; r < rows; ++r) high[r] = low[r] = _mm256_setzero_si256();
    for (std::int32_t j = 0; j < taps.count[i]; j += 4) {
      const __m256i both = _mm256_castsi128_si256(
          split(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + j))));
      const __m256i weight_high = _mm256_permutevar8x32_epi32(both, pick_high);
      const __m256i weight_low = _mm256_permutevar8x32_epi32(both, pick_low);
      for (int r = 0; r < rows; ++r) {
        const __m256i pixels = _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(source[r] + begin + 3 * j))),
            pairs);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(pixels, weight_high));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(pixels, weight_low));
      }
    }
    const __m128i start = _mm_add_epi32(
        _mm_set1_epi32(kHalf), _mm_mullo_epi32(colour, _mm_set1_epi32(taps.background_weight[i])));
    for (int r = 0; r < rows; ++r) {
      const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high[r], kLowBits), low[r]);
      __m128i out = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
      out = _mm_srai_epi32(_mm_add_epi32(out, start), kWeightBits);
      out = _mm_packus_epi16(_mm_packs_epi32(out, out), out);
      const std::int32_t bytes = _mm_cvtsi128_si32(out);
      std::memcpy(target[r] + 3 * i, &bytes, 4);
    }
  }
}

LLAVA_AVX2 void across(const std::uint8_t* const* source, std::uint8_t* const* target, int rows,
                       const Taps& taps, const Colour& background) {
  if (rows == kRows) return across_rows<kRows>(source, target, taps, background);
  for (int r = 0; r < rows; ++r) across_rows<1>(source + r, target + r, taps, background);
}

LLAVA_AVX2 void down(const std::uint8_t* source, std::int64_t stride, const std::int32_t* weights,
                     std::int64_t count, const std::array<std::int32_t, 3>& start,
                     std::uint8_t* target, std::int64_t bytes) {
  const __m256i zero = _mm256_setzero_si256();
  std::int32_t starts[3 + 32];  // so that starts + i % 3 begins with byte i's
  for (int l = 0; l < 3 + 32; ++l) starts[l] = start[l % 3];
  std::int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    __m256i high[4], low[4];
    for (int part = 0; part < 4; ++part) high[part] = low[part] = zero;
    for (std::int64_t t = 0; t < count; t += 2) {
      const std::uint8_t* row = source + t * stride + i;
      const bool pair = t + 1 < count;
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m256i b =
          pair ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + stride)) : zero;
      const std::int32_t second = pair ? weights[t + 1] : 0;
      const auto both = [](std::int32_t x, std::int32_t y) { return (y << 16) | (x & 0xffff); };
      const __m256i weight_high =
          _mm256_set1_epi32(both(weights[t] >> kLowBits, second >> kLowBits));
      const __m256i weight_low = _mm256_set1_epi32(
          both(weights[t] & ((1 << kLowBits) - 1), second & ((1 << kLowBits) - 1)));
      const __m256i first = _mm256_unpacklo_epi8(a, b), last = _mm256_unpackhi_epi8(a, b);
      const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero),
                                _mm256_unpackhi_epi8(first, zero), _mm256_unpacklo_epi8(last, zero),
                                _mm256_unpackhi_epi8(last, zero)};
      for (int part = 0; part < 4; ++part) {
        high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(pairs[part], weight_high));
        low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(pairs[part], weight_low));
      }
    }
    // Part p holds bytes 4p to 4p + 3 in its low half and 16 + 4p to 16 + 4p + 3 in its high half.
    __m256i sums[4];
    for (int part = 0; part < 4; ++part) {
      const std::int32_t* begin = starts + i % 3 + 4 * part;
      const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high[part], kLowBits), low[part]);
      sums[part] = _mm256_srai_epi32(
          _mm256_add_epi32(sum, _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(begin + 16),
                                                    reinterpret_cast<const __m128i*>(begin))),
          kWeightBits);
    }
    const __m256i result = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                               _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), result);
  }
  const std::array<std::int32_t, 3> rest{start[i % 3], start[(i + 1) % 3], start[(i + 2) % 3]};
  plain_kernels().down(source + i, stride, weights, count, rest, target + i, bytes - i);
}

}  // namespace

const Kernels* vector_kernels() {
  static constexpr Kernels kernels{across, down};
  return __builtin_cpu_supports("avx2") ? &kernels : nullptr;
}

}  // namespace llava::media

#else

namespace llava::media {
const Kernels* vector_kernels() { return nullptr; }
}  // namespace llava::media

#endif
