// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share.
#include "cpu_kernels.h"
#include "cpu_product_kernels.h"

#if defined(__AVX512BF16__)

#include <immintrin.h>

#include "cpu_vectors.h"

namespace llava::nn::cpu {
namespace {

constexpr int kVectors = 4;  // of 16 columns in a panel
constexpr int kTile = 16;    // of a transposition

// ── Products ────────────────────────────────────────────────────────────────────────────────────

template <int M>
void multiply_rows(const float* x, std::int64_t x_stride, const float* panel, std::int64_t K,
                   float* y) {
  __m512 sums[M][kVectors];
  for (int m = 0; m < M; ++m)
    for (auto& sum : sums[m]) sum = _mm512_setzero_ps();
  for (std::int64_t k = 0; k < K; ++k, panel += kBlock) {
    __m512 weights[kVectors];
    for (int i = 0; i < kVectors; ++i) weights[i] = _mm512_loadu_ps(panel + 16 * i);
    for (int m = 0; m < M; ++m) {
      const auto input = _mm512_set1_ps(x[m * x_stride + k]);
      for (int i = 0; i < kVectors; ++i)
        sums[m][i] = _mm512_fmadd_ps(weights[i], input, sums[m][i]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(y + m * kBlock + 16 * i, sums[m][i]);
}

void multiply_float(const float* x, std::int64_t x_stride, std::int64_t rows, const float* panel,
                    std::int64_t K, float* y) {
  for (; rows >= 6; rows -= 6, x += 6 * x_stride, y += 6 * kBlock)
    multiply_rows<6>(x, x_stride, panel, K, y);
  switch (rows) {
    case 5: return multiply_rows<5>(x, x_stride, panel, K, y);
    case 4: return multiply_rows<4>(x, x_stride, panel, K, y);
    case 3: return multiply_rows<3>(x, x_stride, panel, K, y);
    case 2: return multiply_rows<2>(x, x_stride, panel, K, y);
    case 1: return multiply_rows<1>(x, x_stride, panel, K, y);
    default: return;
  }
}

void multiply_bfloat16(const std::uint16_t* x, std::int64_t x_stride, std::int64_t rows,
                       const std::uint16_t* panel, std::int64_t K, float* y) {
  avx512_kernels()->multiply_bfloat16(x, x_stride, rows, panel, round_up(K, 2), y, kBlock);
}

// ── Transpositions ──────────────────────────────────────────────────────────────────────────────

/// 16 x 16 words of 32 bits: rows become columns.
void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

/// Words [rows <= 16, columns <= 16] to [columns, 16]; missing rows are zeros.
void transpose_tile(const void* from, std::int64_t stride_bytes, std::int64_t rows,
                    std::int64_t columns, void* to, std::int64_t to_stride_bytes,
                    __mmask16 written) {
  const auto mask = first_lanes(columns);
  __m512i words[16];
  for (int i = 0; i < 16; ++i)
    words[i] =
        i < rows ? _mm512_maskz_loadu_epi32(mask, static_cast<const char*>(from) + i * stride_bytes)
                 : _mm512_setzero_si512();
  transpose(words);
  for (std::int64_t i = 0; i < columns; ++i)
    _mm512_mask_storeu_epi32(static_cast<char*>(to) + i * to_stride_bytes, written, words[i]);
}

/// A panel of words: one float, or two neighbouring bfloat16 numbers.
void pack_words(const void* weight, std::int64_t stride_bytes, std::int64_t rows,
                std::int64_t words, void* panel) {
  const auto* from = static_cast<const char*>(weight);
  auto* to = static_cast<char*>(panel);
  for (std::int64_t k = 0; k < words; k += kTile)
    for (std::int64_t n = 0; n < kBlock; n += kTile)
      transpose_tile(from + n * stride_bytes + 4 * k, stride_bytes, rows - n,
                     words - k < kTile ? words - k : kTile, to + 4 * (k * kBlock + n), 4 * kBlock,
                     0xffff);
}

void pack_float_rows(const float* weight, std::int64_t stride, std::int64_t rows, std::int64_t K,
                     float* panel) {
  pack_words(weight, 4 * stride, rows, K, panel);
}

/// K is even.
void pack_bfloat16_rows(const std::uint16_t* weight, std::int64_t stride, std::int64_t rows,
                        std::int64_t K, std::uint16_t* panel) {
  pack_words(weight, 2 * stride, rows, K / 2, panel);
}

void pack_float_columns(const float* values, std::int64_t stride, std::int64_t K,
                        std::int64_t width, float* panel) {
  for (std::int64_t k = 0; k < K; ++k, values += stride, panel += kBlock)
    for (int i = 0; i < kVectors; ++i)
      _mm512_storeu_ps(panel + 16 * i,
                       _mm512_maskz_loadu_ps(first_lanes(width - 16 * i), values + 16 * i));
}

void transpose_float(const float* from, std::int64_t from_stride, std::int64_t rows,
                     std::int64_t columns, float* to, std::int64_t to_stride) {
  for (std::int64_t column = 0; column < columns; column += kTile)
    for (std::int64_t row = 0; row < rows; row += kTile)
      transpose_tile(from + row * from_stride + column, 4 * from_stride, rows - row,
                     columns - column < kTile ? columns - column : kTile,
                     to + column * to_stride + row, 4 * to_stride, first_lanes(rows - row));
}

/// Two rows at a time, as words of one number each.
void transpose_bfloat16(const std::uint16_t* from, std::int64_t from_stride, std::int64_t rows,
                        std::int64_t columns, std::uint16_t* to, std::int64_t to_stride) {
  for (std::int64_t column = 0; column < columns; column += kTile) {
    const auto mask = first_lanes(columns - column);
    for (std::int64_t row = 0; row < rows; row += 2 * kTile) {
      __m512i words[16];  // word c of i: numbers (row + 2i, c) and (row + 2i + 1, c)
      for (int i = 0; i < kTile; ++i) {
        const auto load = [&](std::int64_t r) {
          return r < rows ? _mm512_cvtepu16_epi32(
                                _mm256_maskz_loadu_epi16(mask, from + r * from_stride + column))
                          : _mm512_setzero_si512();
        };
        words[i] = _mm512_or_si512(load(row + 2 * i), _mm512_slli_epi32(load(row + 2 * i + 1), 16));
      }
      transpose(words);
      const auto left = rows - row;
      const auto written = static_cast<__mmask32>(
          left >= 32 ? 0xffffffffu : (1u << static_cast<unsigned>(left)) - 1);
      for (std::int64_t i = 0; i < kTile && column + i < columns; ++i)
        _mm512_mask_storeu_epi16(to + (column + i) * to_stride + row, written, words[i]);
    }
  }
}

// ── Results ─────────────────────────────────────────────────────────────────────────────────────

template <class Element>
void store(const float* y, std::int64_t rows, std::int64_t columns, const float* bias, bool adds,
           Element* to, std::int64_t to_stride) {
  for (std::int64_t n = 0; n < columns; n += 16) {
    const auto mask = first_lanes(columns - n);
    const auto added = bias ? _mm512_maskz_loadu_ps(mask, bias + n) : _mm512_setzero_ps();
    for (std::int64_t m = 0; m < rows; ++m) {
      auto* place = to + m * to_stride + n;
      auto value = _mm512_add_ps(_mm512_loadu_ps(y + m * kBlock + n), added);
      if (adds) value = _mm512_add_ps(value, read(place, mask));
      write(place, mask, value);
    }
  }
}

}  // namespace

const ProductKernels<float>* float_products() {
  static const ProductKernels<float> kernels{multiply_float, pack_float_rows, pack_float_columns,
                                             transpose_float, store<float>};
  return avx512_kernels() ? &kernels : nullptr;
}

const ProductKernels<std::uint16_t>* bfloat16_products() {
  static const ProductKernels<std::uint16_t> kernels{
      multiply_bfloat16, pack_bfloat16_rows,
      avx512_kernels() ? avx512_kernels()->pack_columns : nullptr, transpose_bfloat16,
      store<std::uint16_t>};
  return avx512_kernels() ? &kernels : nullptr;
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
const ProductKernels<float>* float_products() { return nullptr; }
const ProductKernels<std::uint16_t>* bfloat16_products() { return nullptr; }
}  // namespace llava::nn::cpu

#endif
