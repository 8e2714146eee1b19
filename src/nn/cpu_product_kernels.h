// Inner loops of cpu_products. No torch here, and nothing that allocates. Element is float or
// bfloat16 (as std::uint16_t); a panel of 64 columns is packed as [K][64] floats or [K/2][64][2]
// bfloat16 numbers, K rounded up to even.
#pragma once

#include <cstdint>

namespace llava::nn::cpu {

/// Where a product of up to 64 columns goes: y [rows, columns], with a bias (or nullptr), and with
/// `adds` on top of what is there.
template <class Element>
struct ProductTarget {
  Element* y;
  std::int64_t stride, columns;
  const float* bias;
  bool adds;
};

template <class Element>
struct ProductKernels {
  /// x [rows, K] times a panel; x's rows `x_stride` apart.
  void (*multiply)(const Element* x, std::int64_t x_stride, std::int64_t rows, const Element* panel,
                   std::int64_t K, const ProductTarget<Element>& to);
  /// Up to 64 rows of a weight [rows, K] as columns of a panel; missing ones are zeros.
  void (*pack_rows)(const Element* weight, std::int64_t stride, std::int64_t rows, std::int64_t K,
                    Element* panel);
  /// Up to 64 columns of [K, width].
  void (*pack_columns)(const Element* values, std::int64_t stride, std::int64_t K,
                       std::int64_t width, Element* panel);
  /// [rows, columns] to [columns, rows].
  void (*transpose)(const Element* from, std::int64_t from_stride, std::int64_t rows,
                    std::int64_t columns, Element* to, std::int64_t to_stride);
};

/// nullptr where they were not compiled or the CPU lacks what they need.
const ProductKernels<float>* float_products();
const ProductKernels<std::uint16_t>* bfloat16_products();

}  // namespace llava::nn::cpu
