// Products of bytes and the bytes of a row, compiled with AVX-512 switched on like
// cpu_kernels_avx512.cpp.
//
// A block's weights are taken in chunks of as many inputs as have one scale in a row, 32 KB of
// int8, which stay in the first cache while all rows meet them; what the rows have so far waits in
// y. Every row meets the groups in one order with the same operations, however many rows are in its
// tile.
#include "cpu_avx512.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

namespace llava::nn::cpu {
namespace {

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
    if constexpr (M == 6 && V == 2) return add_bytes_of_many(bytes, x);
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      __m512i weights[V];
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) weights[i] = load(bytes + 4 * kBlock * step + 64 * i);
      add(weights, x + 4 * M * step);
    }
  }

  /// The same, instruction by instruction: GCC 12 moves so much between registers for tiles of this
  /// size that the products take 6 % longer.
  void add_bytes_of_many(const std::uint8_t* bytes, const std::int8_t* x) {
// clang-format off
// NOLINTBEGIN(bugprone-macro-parentheses): they make text
#define LLAVA_ROW(input, first, second)      \
  "vpbroadcastd " #input "(%[x]), %[row]\n"  \
  "vpdpbusd %[row], %[w0], %[" #first "]\n"  \
  "vpdpbusd %[row], %[w1], %[" #second "]\n"
#define LLAVA_STEP(bytes, input)                                              \
  "vmovdqu64 " #bytes "(%[w]), %[w0]\n"                                       \
  "vmovdqu64 64+" #bytes "(%[w]), %[w1]\n"                                    \
  LLAVA_ROW(input, a0, a1) LLAVA_ROW(4+input, b0, b1) LLAVA_ROW(8+input, c0, c1) \
  LLAVA_ROW(12+input, d0, d1) LLAVA_ROW(16+input, e0, e1) LLAVA_ROW(20+input, f0, f1)
    // NOLINTEND(bugprone-macro-parentheses)
    // clang-format on
    __m512i w0, w1, row;
    asm(LLAVA_STEP(0, 0) LLAVA_STEP(256, 24) LLAVA_STEP(512, 48) LLAVA_STEP(768, 72)
            LLAVA_STEP(1024, 96) LLAVA_STEP(1280, 120) LLAVA_STEP(1536, 144) LLAVA_STEP(1792, 168)
        : [a0] "+v"(sums[0][0]), [a1] "+v"(sums[0][1]), [b0] "+v"(sums[1][0]),
          [b1] "+v"(sums[1][1]), [c0] "+v"(sums[2][0]), [c1] "+v"(sums[2][1]),
          [d0] "+v"(sums[3][0]), [d1] "+v"(sums[3][1]), [e0] "+v"(sums[4][0]),
          [e1] "+v"(sums[4][1]), [f0] "+v"(sums[5][0]), [f1] "+v"(sums[5][1]), [w0] "=&v"(w0),
          [w1] "=&v"(w1), [row] "=&v"(row)
        : [w] "r"(bytes), [x] "r"(x)
        : "memory");
#undef LLAVA_STEP
#undef LLAVA_ROW
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

/// Adds to y, or to zeros, the products of a tile of M rows with V vectors of a block, from its
/// vector `first` on; of `count` inputs with one scale of each row.
template <int kBits, int M, int V>
void add_tile(ByteRows x, const std::uint8_t* block, int first, std::int64_t count, bool begins,
              float* y) {
  __m512 results[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) results[m][i] = _mm512_setzero_ps();
  for (std::int64_t k = 0; k < count; k += group_inputs(kBits), block += group_bytes(kBits)) {
    const auto here = x.at_input(k, M, kBits);
    const auto* bytes = block + 2 * kBlock + 64 * first;
    Sums<M, V> sums;
    sums.begin(here.starts);
    if constexpr (kBits == 8) {
      for (std::int64_t i = 0; i < group_inputs(8); i += 32)
        sums.add_bytes(bytes + kBlock * i, here.values + M * i);
    } else {
      sums.add_nibbles(bytes, here.values);
    }
    __m512 scales[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) scales[i] = widen(block + 32 * (first + i));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)  // a row's sums are free for the next group as soon as can be
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i)
        results[m][i] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums.sums[m][i]), scales[i], results[m][i]);
  }
  const auto is_added = static_cast<__mmask16>(begins ? 0 : 0xffff);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const auto scale = _mm512_set1_ps(x.scales[m]);
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) {
      float* to = y + m * kBlock + 16 * (first + i);
      _mm512_storeu_ps(to,
                       _mm512_fmadd_ps(results[m][i], scale, _mm512_maskz_loadu_ps(is_added, to)));
    }
  }
}

template <int kBits, int M, int V>
void add_rows(const ByteRows& x, const std::uint8_t* block, std::int64_t count, bool begins,
              float* y) {
  for (int first = 0; first < kVectors; first += V)
    add_tile<kBits, M, V>(x, block, first, count, begins, y);
}

template <int kBits>
void multiply_bytes(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                    std::int64_t inputs, float* y) {
  for (std::int64_t k = 0; k < inputs; k += kRowGroup) {
    const auto count = inputs - k < kRowGroup ? inputs - k : kRowGroup;
    for (std::int64_t row = 0; row < rows;) {
      const auto some = tile_rows(rows - row);
      const auto tile = x.at_row(row, kBits).at_input(k, some, kBits);
      float* to = y + row * kBlock;
      switch (some) {
        case 6: add_rows<kBits, 6, 2>(tile, block, count, k == 0, to); break;
        case 4: add_rows<kBits, 4, 2>(tile, block, count, k == 0, to); break;
        case 2: add_rows<kBits, 2, 4>(tile, block, count, k == 0, to); break;
        default: add_rows<kBits, 1, 4>(tile, block, count, k == 0, to);
      }
      row += some;
    }
    block += count / group_inputs(kBits) * group_bytes(kBits);
  }
}

// ── A row to bytes ──────────────────────────────────────────────────────────────────────────────

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

}  // namespace

void quantize_row_avx512(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                         std::int32_t* sums, float* rest) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (std::int64_t begin = 0; begin < inputs; begin += kRowGroup) {
    const auto end = begin + kRowGroup < inputs ? begin + kRowGroup : inputs;
    auto most = _mm512_setzero_ps();
    int strange = 0;
    for (auto k = begin; k < end; k += 32) {
      const auto low = _mm512_loadu_ps(x + k), high = _mm512_loadu_ps(x + k + 16);
      most = _mm512_max_ps(most, _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
      strange |= _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q);
    }
    const float largest = _mm512_reduce_max_ps(most);
    const bool is_finite = strange == 0 && largest <= 3.4e38F;
    const float size = is_finite ? largest / 127 : 0;
    const auto inverse = _mm512_set1_ps(size > 0 ? 1 / size : 0);
    const auto whole = [&](std::int64_t k) {
      const auto multiple = _mm512_mul_ps(_mm512_loadu_ps(x + k), inverse);
      const auto number = _mm512_roundscale_ps(multiple, kNearest);
      return is_finite ? number : _mm512_setzero_ps();
    };
    for (auto k = begin; k < end; k += 32) {
      const auto low = whole(k), high = whole(k + 16);
      *sums++ = store_bytes(low, high, values + k);
      if (!rest) continue;
      const auto scale = _mm512_set1_ps(size);
      _mm512_storeu_ps(rest + k, _mm512_fnmadd_ps(low, scale, _mm512_loadu_ps(x + k)));
      _mm512_storeu_ps(rest + k + 16, _mm512_fnmadd_ps(high, scale, _mm512_loadu_ps(x + k + 16)));
    }
    *scales++ = is_finite ? size : __builtin_nanf("");
  }
}

void multiply_int8_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y) {
  multiply_bytes<8>(x, rows, block, inputs, y);
}

void multiply_int4_avx512(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                          std::int64_t inputs, float* y) {
  multiply_bytes<4>(x, rows, block, inputs, y);
}

}  // namespace llava::nn::cpu

#endif
