// What both halves of cpu_flash share; every file that includes this has its own copy.
#pragma once

#include "cpu_product_kernels.h"
#include "cpu_tiles.h"

namespace llava::nn::cpu {
namespace {

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

/// c [M, 16 V] = a times b, or on top of what is there.
template <class Element, int M, int V>
void tile(const Operand& a, const float* b, std::int64_t steps, float* c, std::int64_t c_stride,
          bool adds) {
  __m512 sums[M][V];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < V; ++i)
      sums[m][i] = adds ? _mm512_loadu_ps(c + m * c_stride + 16 * i) : _mm512_setzero_ps();
  sum_up<Element>(a, b, steps, sums);
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
