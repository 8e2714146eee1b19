// What both halves of cpu_flash share; every file that includes this has its own copy. All products
// are of words of 32 bits, one float or two neighbouring bfloat16 numbers: a [rows, steps] times
// b [steps][64].
#pragma once

#include "cpu_kernels.h"
#include "cpu_product_kernels.h"
#include "cpu_vectors.h"

namespace llava::nn::cpu {
namespace {

constexpr std::int64_t kRows = 6;  // of a tile of sums

template <class Element>
constexpr std::int64_t kPerWord = 4 / static_cast<std::int64_t>(sizeof(Element));

/// Words that hold `count` numbers.
template <class Element>
constexpr std::int64_t words(std::int64_t count) {
  return (count + kPerWord<Element> - 1) / kPerWord<Element>;
}

constexpr std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class Element>
const ProductKernels<Element>& products();
template <>
inline const ProductKernels<float>& products<float>() {
  return *float_products();
}
template <>
inline const ProductKernels<std::uint16_t>& products<std::uint16_t>() {
  return *bfloat16_products();
}

/// Word (row, step) stands at from + 4 * (row * this->row + step * this->step).
struct Operand {
  const void* from;
  std::int64_t row, step;
};

inline __m512 multiply_add(const float*, __m512 sum, __m512i a, __m512i b) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}
inline __m512 multiply_add(const std::uint16_t*, __m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(a));
}

/// c [M, 16 V] = a times b, or on top of what is there.
template <class Element, int M, int V>
void tile(const Operand& a, const float* b, std::int64_t steps, float* c, std::int64_t c_stride,
          bool adds) {
  __m512 sums[M][V];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < V; ++i)
      sums[m][i] = adds ? _mm512_loadu_ps(c + m * c_stride + 16 * i) : _mm512_setzero_ps();
  const auto* from = static_cast<const char*>(a.from);
  const auto row = 4 * a.row, step = 4 * a.step;
  for (std::int64_t k = 0; k < steps; ++k, b += kBlock, from += step) {
    __m512i right[V];
    for (int i = 0; i < V; ++i) right[i] = _mm512_loadu_si512(b + 16 * i);
    for (int m = 0; m < M; ++m) {
      const auto left = broadcast(from + m * row);
      for (int i = 0; i < V; ++i)
        sums[m][i] = multiply_add(static_cast<const Element*>(nullptr), sums[m][i], left, right[i]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < V; ++i) _mm512_storeu_ps(c + m * c_stride + 16 * i, sums[m][i]);
}

using Tile = void (*)(const Operand&, const float*, std::int64_t, float*, std::int64_t, bool);
template <class Element, int M>
constexpr Tile kTilesOf[] = {tile<Element, M, 1>, tile<Element, M, 2>, tile<Element, M, 3>,
                             tile<Element, M, 4>};
template <class Element>
constexpr const Tile* kTiles[] = {kTilesOf<Element, 1>, kTilesOf<Element, 2>, kTilesOf<Element, 3>,
                                  kTilesOf<Element, 4>, kTilesOf<Element, 5>, kTilesOf<Element, 6>};

/// The tile for `rows` <= 6 and `columns` > 0, of which at most 64 are made.
template <class Element>
Tile tile_of(std::int64_t rows, std::int64_t columns) {
  return kTiles<Element>[rows - 1][(at_most(columns, kBlock) + 15) / 16 - 1];
}

}  // namespace
}  // namespace llava::nn::cpu
