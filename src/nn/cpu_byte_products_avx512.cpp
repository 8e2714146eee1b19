// Products of bytes and the bytes of a row, compiled with AVX-512 switched on like
// cpu_kernels_avx512.cpp.
//
// A block's weights are taken in chunks that stay in the first cache while all rows meet them; what
// the rows have so far waits in y. Every row meets the groups in one order with the same
// operations, however many rows are in its tile.
#include "cpu_avx512.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

namespace llava::nn::cpu {
namespace {

constexpr std::int64_t kChunk = 256;  // inputs: 16 KB of int8

/// Sums of products of a tile of M rows with V vectors of 16 outputs. Every loop over them is
/// unrolled where it stands, or the sums would live in memory.
template <int M, int V>
struct Sums {
  __m512i sums[M][V];

  void begin(const std::int32_t* starts) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto start = broadcast(starts + m);
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) sums[m][i] = start;
    }
  }

  /// Adds the products of four inputs of each row.
  void add(const __m512i (&weights)[V], const std::int8_t* x) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto input = broadcast(x + 4 * m);
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], weights[i], input);
    }
  }

  /// Those of 32 inputs with bytes, of which those of four inputs lie 256 apart.
  void add_bytes(const std::uint8_t* bytes, const std::int8_t* x) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      __m512i weights[V];
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) weights[i] = load(bytes + 4 * kBlock * step + 64 * i);
      add(weights, x + 4 * M * step);
    }
  }

  /// Those of 32 inputs with nibbles.
  void add_nibbles(const std::uint8_t* bytes, const std::int8_t* x) {
    const auto nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      __m512i low[V], high[V];
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) {
        const auto both = load(bytes + 4 * kBlock * step + 64 * i);
        low[i] = _mm512_and_si512(both, nibble);
        high[i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
      }
      add(low, x + 4 * M * step);
      add(high, x + (16 + 4 * step) * M);
    }
  }
};

/// Adds to y the products of `count` inputs of a tile of M rows, with scales for kGroup inputs,
/// with V vectors of a block, from its vector `first` on.
template <int kBits, int kGroup, int M, int V>
void add_tile(const ByteRows& x, const std::uint8_t* block, int first, std::int64_t count,
              float* y) {
  constexpr auto kInputs = group_inputs(kBits), kSummed = ByteRows::summed(kBits, kGroup);
  __m512 results[M][V];
  y += 16 * first;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) results[m][i] = _mm512_loadu_ps(y + m * kBlock + 16 * i);
  const auto* values = x.values;
  const auto* starts = x.starts;
  for (std::int64_t k = 0; k < count; k += kInputs, block += group_bytes(kBits)) {
    const auto* bytes = block + 2 * kBlock + 64 * first;
    for (std::int64_t part = 0; part < kInputs; part += kSummed, starts += M) {
      Sums<M, V> sums;
      sums.begin(starts);
      if constexpr (kBits == 8) {
        for (int i = 0; i < kSummed; i += 32, bytes += 32 * kBlock, values += 32 * M)
          sums.add_bytes(bytes, values);
      } else {
        sums.add_nibbles(bytes, values);
        values += 32 * M;
      }
      const auto* row_scales = x.scales + (k + part) / kGroup * M;
      __m512 scales[V];
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) scales[i] = widen(block + 32 * (first + i));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {  // a row's sums are free for the next group as soon as can be
        const auto scale = _mm512_set1_ps(row_scales[m]);
#pragma GCC unroll 8
        for (int i = 0; i < V; ++i)
          results[m][i] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums.sums[m][i]), scale),
                                          scales[i], results[m][i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) _mm512_storeu_ps(y + m * kBlock + 16 * i, results[m][i]);
}

template <int kBits, int kGroup, int M, int V>
void add_rows(const ByteRows& x, const std::uint8_t* block, std::int64_t count, float* y) {
  for (int first = 0; first < kVectors; first += V)
    add_tile<kBits, kGroup, M, V>(x, block, first, count, y);
}

template <int kBits, int kGroup>
void multiply_bytes(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                    std::int64_t inputs, float* y) {
  for (std::int64_t i = 0; i < rows * kBlock; i += 16) _mm512_storeu_ps(y + i, _mm512_setzero_ps());
  for (std::int64_t k = 0; k < inputs; k += kChunk) {
    const auto count = inputs - k < kChunk ? inputs - k : kChunk;
    for (std::int64_t row = 0; row < rows;) {
      const auto some = tile_rows(rows - row);
      const auto tile = x.at_row(row, kBits).at_input(k, some, kBits);
      float* to = y + row * kBlock;
      switch (some) {
        case 6: add_rows<kBits, kGroup, 6, 2>(tile, block, count, to); break;
        case 4: add_rows<kBits, kGroup, 4, 2>(tile, block, count, to); break;
        case 2: add_rows<kBits, kGroup, 2, 4>(tile, block, count, to); break;
        default: add_rows<kBits, kGroup, 1, 4>(tile, block, count, to);
      }
      row += some;
    }
    block += count / group_inputs(kBits) * group_bytes(kBits);
  }
}

// ── A row to bytes ──────────────────────────────────────────────────────────────────────────────

/// The numbers of a group of 16 N.
template <int N>
struct Numbers {
  __m512 x[N];

  __m512 largest() const {
    auto most = _mm512_abs_ps(x[0]);
    for (int i = 1; i < N; ++i) most = _mm512_max_ps(most, _mm512_abs_ps(x[i]));
    return most;
  }
  Numbers times(__m512 factor) const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    Numbers whole;
    for (int i = 0; i < N; ++i)
      whole.x[i] = _mm512_roundscale_ps(_mm512_mul_ps(x[i], factor), kNearest);
    return whole;
  }
  __m512 squared_error(const Numbers& whole, __m512 scale) const {
    auto sum = _mm512_setzero_ps();
    for (int i = 0; i < N; ++i) {
      const auto error = _mm512_fnmadd_ps(whole.x[i], scale, x[i]);
      sum = _mm512_fmadd_ps(error, error, sum);
    }
    return sum;
  }
  bool has_strange() const {
    int strange = 0;
    for (int i = 0; i < N; i += 2) strange |= _mm512_cmp_ps_mask(x[i], x[i + 1], _CMP_UNORD_Q);
    return strange != 0;
  }
};

/// Whole numbers from -127 to 127 as 32 bytes; returns their sum.
std::int32_t store_bytes(__m512 low, __m512 high, std::int8_t* to) {
  const auto bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(high)),
                                      _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(low)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  const auto quads = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  auto sum = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

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

template <int N>
void quantize_groups(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                     std::int32_t* sums) {
  static_assert(kRowTrials == 4);
  for (std::int64_t k = 0; k < inputs; k += 16 * N, ++scales) {
    Numbers<N> numbers;
    for (int i = 0; i < N; ++i) numbers.x[i] = _mm512_loadu_ps(x + k + 16 * i);
    const float size = _mm512_cvtss_f32(largest_in_all_lanes(numbers.largest())) / 127;
    const auto least = _mm512_set1_ps(size);
    const auto inverse = _mm512_set1_ps(size > 0 ? 1 / size : 0);
    __m512 errors[4];
    for (int i = 0; i < 4; ++i)
      errors[i] = numbers.squared_error(
          numbers.times(_mm512_mul_ps(inverse, _mm512_set1_ps(kRowInverses[i]))),
          _mm512_mul_ps(least, _mm512_set1_ps(kRowFactors[i])));
    const int best = least_of_four(errors);
    const auto whole = numbers.times(_mm512_mul_ps(inverse, _mm512_set1_ps(kRowInverses[best])));
    for (int i = 0; i < N; i += 2, values += 32)
      *sums++ = store_bytes(whole.x[i], whole.x[i + 1], values);
    *scales = numbers.has_strange() ? __builtin_nanf("") : size * kRowFactors[best];
  }
}

}  // namespace

void quantize_row_avx512(const float* x, std::int64_t inputs, std::int64_t group,
                         std::int8_t* values, float* scales, std::int32_t* sums) {
  (group == 64 ? quantize_groups<4> : quantize_groups<2>)(x, inputs, values, scales, sums);
}

void multiply_int8_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y) {
  (x.group == 64 ? multiply_bytes<8, 64> : multiply_bytes<8, 32>)(x, rows, block, inputs, y);
}

void multiply_int4_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y) {
  (x.group == 64 ? multiply_bytes<4, 64> : multiply_bytes<4, 32>)(x, rows, block, inputs, y);
}

}  // namespace llava::nn::cpu

#endif
