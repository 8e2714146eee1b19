// Products of words of 32 bits, one float or two neighbouring bfloat16 numbers: a [rows, steps]
// times b [steps][64]. Every file that includes this has its own copy (see cpu_vectors.h).
#pragma once

#include "cpu_kernels.h"
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

/// Adds a [M, steps] times 16 V columns of b to `sums`.
template <class Element, int M, int V>
inline void sum_up(const Operand& a, const void* b, std::int64_t steps, __m512 (&sums)[M][V]) {
  const auto* right = static_cast<const char*>(b);
  const auto* left = static_cast<const char*>(a.from);
  const auto row = 4 * a.row, step = 4 * a.step;
  for (std::int64_t k = 0; k < steps; ++k, right += 4 * kBlock, left += step) {
    __m512i columns[V];
    for (int i = 0; i < V; ++i) columns[i] = _mm512_loadu_si512(right + 64 * i);
    for (int m = 0; m < M; ++m) {
      const auto input = broadcast(left + m * row);
      for (int i = 0; i < V; ++i)
        sums[m][i] =
            multiply_add(static_cast<const Element*>(nullptr), sums[m][i], input, columns[i]);
    }
  }
}

}  // namespace
}  // namespace llava::nn::cpu
