// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share.
#include "cpu_kernels.h"
#include "cpu_product_kernels.h"

#if defined(__AVX512BF16__)

#include <immintrin.h>

#include "cpu_tiles.h"

namespace llava::nn::cpu {
namespace {

constexpr int kVectors = 4;  // of 16 columns in a panel
constexpr int kTile = 16;    // of a transposition

// ── Products ────────────────────────────────────────────────────────────────────────────────────

/// Rows of a product with 16 V columns, the last 16 of them where `mask` says.
template <class Element, int M, int V>
void multiply_rows(const Operand& x, const Element* panel, std::int64_t steps,
                   const ProductTarget<Element>& to, __mmask16 mask) {
  __m512 sums[M][V];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm512_setzero_ps();
  sum_up<Element>(x, panel, steps, sums);
  for (int i = 0; i < V; ++i) {
    const auto lanes = i == V - 1 ? mask : __mmask16{0xffff};
    const auto bias = to.bias ? read(to.bias + 16 * i, lanes) : _mm512_setzero_ps();
    for (int m = 0; m < M; ++m) {
      auto* place = to.y + m * to.stride + 16 * i;
      auto value = _mm512_add_ps(sums[m][i], bias);
      if (to.adds) value = _mm512_add_ps(value, read(place, lanes));
      write(place, lanes, value);
    }
  }
}

template <class Element>
using MultiplyRows = void (*)(const Operand&, const Element*, std::int64_t,
                              const ProductTarget<Element>&, __mmask16);
template <class Element, int M>
constexpr MultiplyRows<Element> kMultiplyOf[] = {
    multiply_rows<Element, M, 1>, multiply_rows<Element, M, 2>, multiply_rows<Element, M, 3>,
    multiply_rows<Element, M, 4>};
template <class Element>
constexpr const MultiplyRows<Element>* kMultiply[] = {
    kMultiplyOf<Element, 1>, kMultiplyOf<Element, 2>, kMultiplyOf<Element, 3>,
    kMultiplyOf<Element, 4>, kMultiplyOf<Element, 5>, kMultiplyOf<Element, 6>};

template <class Element>
void multiply(const Element* x, std::int64_t x_stride, std::int64_t rows, const Element* panel,
              std::int64_t K, const ProductTarget<Element>& to) {
  const auto vectors = (to.columns + 15) / 16;
  const auto mask = first_lanes(to.columns - 16 * (vectors - 1));
  auto part = to;
  for (std::int64_t row = 0; row < rows; row += kRows) {
    part.y = to.y + row * to.stride;
    kMultiply<Element>[at_most(kRows, rows - row) - 1][vectors - 1](
        {x + row * x_stride, x_stride / kPerWord<Element>, 1}, panel, words<Element>(K), part,
        mask);
  }
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

}  // namespace

const ProductKernels<float>* float_products() {
  static const ProductKernels<float> kernels{multiply<float>, pack_float_rows, pack_float_columns,
                                             transpose_float};
  return avx512_kernels() ? &kernels : nullptr;
}

const ProductKernels<std::uint16_t>* bfloat16_products() {
  static const ProductKernels<std::uint16_t> kernels{
      multiply<std::uint16_t>, pack_bfloat16_rows,
      avx512_kernels() ? avx512_kernels()->pack_columns : nullptr, transpose_bfloat16};
  return avx512_kernels() ? &kernels : nullptr;
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
const ProductKernels<float>* float_products() { return nullptr; }
const ProductKernels<std::uint16_t>* bfloat16_products() { return nullptr; }
}  // namespace llava::nn::cpu

#endif
