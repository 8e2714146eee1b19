// Products of bytes and the bytes of a row, compiled with AVX-512 switched on like
// cpu_kernels_avx512.cpp.
//
// A block's weights are taken in chunks that stay in the first cache while all rows meet them; what
// the rows have so far waits in y. Every row meets the groups in one order with the same
// operations, however many rows go together.
#include "cpu_avx512.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

namespace llava::nn::cpu {
namespace {

constexpr std::int64_t kChunk = 256;  // inputs: 16 KB of int8

/// Sums of 32 products of each of M rows with V vectors of 16 outputs. The bytes of four inputs lie
/// 256 apart. Weights are 0 ... 255, `kAddedBits` says what was added to them.
template <int M, int V, int kAddedBits>
struct Sums {
  __m512i sums[M][V];

  void begin(const ByteRows& x, std::int64_t groups) {
    for (int m = 0; m < M; ++m) {
      const auto minus_sum = broadcast(x.minus_sums + m * groups);
      for (auto& sum : sums[m]) sum = _mm512_slli_epi32(minus_sum, kAddedBits);
    }
  }

  void add(const __m512i (&weights)[V], const std::int8_t* x, std::int64_t inputs) {
    for (int m = 0; m < M; ++m) {
      const auto input = broadcast(x + m * inputs);
      for (int i = 0; i < V; ++i) sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], weights[i], input);
    }
  }

  void add_bytes(const std::uint8_t* bytes, const std::int8_t* x, std::int64_t inputs) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step, bytes += 4 * kBlock) {
      __m512i weights[V];
      for (int i = 0; i < V; ++i) weights[i] = load(bytes + 64 * i);
      add(weights, x + 4 * step, inputs);
    }
  }

  void add_nibbles(const std::uint8_t* bytes, const std::int8_t* x, std::int64_t inputs) {
    const auto nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step, bytes += 4 * kBlock) {
      __m512i weights[V];
      for (int i = 0; i < V; ++i) weights[i] = _mm512_and_si512(load(bytes + 64 * i), nibble);
      add(weights, x + 4 * step, inputs);
      for (int i = 0; i < V; ++i)
        weights[i] = _mm512_and_si512(_mm512_srli_epi16(load(bytes + 64 * i), 4), nibble);
      add(weights, x + 16 + 4 * step, inputs);
    }
  }
};

/// Adds to y the products of `count` inputs of M rows with V vectors of an int8 block, from its
/// vector `first` on. Scales of a row are applied every 32 inputs, those of the weight every 64.
template <int M, int V>
void add_int8(ByteRows x, const std::uint8_t* block, int first, std::int64_t inputs,
              std::int64_t count, float* y, std::int64_t y_stride) {
  const auto groups = inputs / kGroup;
  for (std::int64_t k = 0; k < count; k += kInt8Group, block += kInt8GroupBytes) {
    const auto* bytes = block + 2 * kBlock + 64 * first;
    __m512 halves[M][V];
    Sums<M, V, 7> sums;
    sums.begin(x, groups);
    sums.add_bytes(bytes, x.values, inputs);
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < V; ++i)
        halves[m][i] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums.sums[m][i]),
                                     _mm512_set1_ps(x.scales[m * groups]));
    x = x.from(0, kGroup, inputs);
    sums.begin(x, groups);
    sums.add_bytes(bytes + kGroup * kBlock, x.values, inputs);
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < V; ++i)
        halves[m][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums.sums[m][i]),
                                       _mm512_set1_ps(x.scales[m * groups]), halves[m][i]);
    x = x.from(0, kGroup, inputs);
    for (int i = 0; i < V; ++i) {
      const auto scale = widen(block + 32 * (first + i));
      for (int m = 0; m < M; ++m) {
        float* to = y + m * y_stride + 16 * (first + i);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(halves[m][i], scale, _mm512_loadu_ps(to)));
      }
    }
  }
}

/// The same with an int4 block, whose scales hold for 32 inputs too.
template <int M, int V>
void add_int4(ByteRows x, const std::uint8_t* block, int first, std::int64_t inputs,
              std::int64_t count, float* y, std::int64_t y_stride) {
  const auto groups = inputs / kGroup;
  for (std::int64_t k = 0; k < count; k += kGroup, block += kInt4GroupBytes) {
    Sums<M, V, 3> sums;
    sums.begin(x, groups);
    sums.add_nibbles(block + 2 * kBlock + 64 * first, x.values, inputs);
    for (int i = 0; i < V; ++i) {
      const auto scale = widen(block + 32 * (first + i));
      for (int m = 0; m < M; ++m) {
        float* to = y + m * y_stride + 16 * (first + i);
        const auto both = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[m * groups]));
        _mm512_storeu_ps(
            to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums.sums[m][i]), both, _mm512_loadu_ps(to)));
      }
    }
    x = x.from(0, kGroup, inputs);
  }
}

template <int kBits, int M, int V>
void add_rows(const ByteRows& x, const std::uint8_t* block, std::int64_t inputs, std::int64_t count,
              float* y, std::int64_t y_stride) {
  constexpr auto add = kBits == 8 ? add_int8<M, V> : add_int4<M, V>;
  for (int first = 0; first < kVectors; first += V)
    add(x, block, first, inputs, count, y, y_stride);
}

template <int kBits>
void multiply_bytes(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                    std::int64_t inputs, float* y, std::int64_t y_stride) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (int i = 0; i < kVectors; ++i)
      _mm512_storeu_ps(y + row * y_stride + 16 * i, _mm512_setzero_ps());
  constexpr auto kBytes = kBits == 8 ? kInt8GroupBytes * kChunk / kInt8Group  // of a chunk
                                     : kInt4GroupBytes * kChunk / kGroup;
  for (std::int64_t k = 0; k < inputs; k += kChunk, block += kBytes) {
    const auto count = inputs - k < kChunk ? inputs - k : kChunk;
    std::int64_t row = 0;
    const auto add = [&](auto add_some, std::int64_t some) {
      for (; row + some <= rows; row += some)
        add_some(x.from(row, k, inputs), block, inputs, count, y + row * y_stride, y_stride);
    };
    add(add_rows<kBits, 6, 2>, 6);  // many rows: the most registers
    add(add_rows<kBits, 4, 4>, 4);  // few: weights from front to back
    add(add_rows<kBits, 2, 4>, 2);
    add(add_rows<kBits, 1, 4>, 1);
  }
}

// ── A row to bytes ──────────────────────────────────────────────────────────────────────────────

/// The 32 numbers of a group.
struct Pair {
  __m512 low, high;

  Pair times(__m512 factor) const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm512_roundscale_ps(_mm512_mul_ps(low, factor), kNearest),
            _mm512_roundscale_ps(_mm512_mul_ps(high, factor), kNearest)};
  }
  __m512 squared_error(const Pair& whole, __m512 scale) const {
    const auto a = _mm512_fnmadd_ps(whole.low, scale, low);
    const auto b = _mm512_fnmadd_ps(whole.high, scale, high);
    return _mm512_fmadd_ps(b, b, _mm512_mul_ps(a, a));
  }
};

/// Which of four vectors has the smallest sum. They are summed together.
int least_of_four(const __m512 (&x)[4]) {
  const auto interleaved = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const auto a = _mm512_castps_pd(interleaved(x[0], x[1]));
  const auto b = _mm512_castps_pd(interleaved(x[2], x[3]));
  const auto all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  const auto half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const auto sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  auto least = _mm_min_ps(sums, _mm_shuffle_ps(sums, sums, 0x4e));
  least = _mm_min_ps(least, _mm_shuffle_ps(least, least, 0xb1));
  return __builtin_ctz(static_cast<unsigned>(_mm_cmp_ps_mask(sums, least, _CMP_EQ_OQ)) | 8);
}

__m512 largest_in_all_lanes(__m512 x) {
  x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
  return _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
}

}  // namespace

void quantize_row_avx512(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                         std::int32_t* minus_sums) {
  static_assert(kRowTrials == 4);
  const auto ones = _mm512_set1_epi8(1);
  for (std::int64_t group = 0; group < inputs / kGroup; ++group, x += kGroup, values += kGroup) {
    const Pair numbers{_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
    const auto largest = largest_in_all_lanes(
        _mm512_max_ps(_mm512_abs_ps(numbers.low), _mm512_abs_ps(numbers.high)));
    const float size = _mm512_cvtss_f32(largest) / 127;
    const auto least = _mm512_set1_ps(size);
    const auto inverse = _mm512_set1_ps(size > 0 ? 1 / size : 0);
    __m512 errors[4];
    for (int i = 0; i < 4; ++i)
      errors[i] = numbers.squared_error(
          numbers.times(_mm512_mul_ps(inverse, _mm512_set1_ps(kRowInverses[i]))),
          _mm512_mul_ps(least, _mm512_set1_ps(kRowFactors[i])));
    const int best = least_of_four(errors);
    const auto whole = numbers.times(_mm512_mul_ps(inverse, _mm512_set1_ps(kRowInverses[best])));
    const auto low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.low));
    const auto high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.high));
    const auto bytes = _mm256_set_m128i(high, low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), bytes);
    const auto strange = _mm512_cmp_ps_mask(numbers.low, numbers.high, _CMP_UNORD_Q);
    scales[group] = strange ? __builtin_nanf("") : size * kRowFactors[best];
    const auto quads =
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm512_castsi512_si256(ones), bytes);
    auto sum = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    minus_sums[group] = -_mm_cvtsi128_si32(sum);
  }
}

void multiply_int8_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y, std::int64_t y_stride) {
  multiply_bytes<8>(x, rows, block, inputs, y, y_stride);
}

void multiply_int4_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y, std::int64_t y_stride) {
  multiply_bytes<4>(x, rows, block, inputs, y, y_stride);
}

}  // namespace llava::nn::cpu

#endif
