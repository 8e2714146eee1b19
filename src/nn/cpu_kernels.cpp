// The plain set: any CPU, no hurry; what the fast set is tested against.
#include "cpu_kernels.h"

#include "cpu_quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace llava::nn::cpu {
namespace {

std::uint16_t narrowed(float x) {  // to nearest, ties to even
  const auto bits = bits_of(x);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void multiply_bfloat16(const std::uint16_t* x, std::int64_t x_stride, std::int64_t rows,
                       const std::uint16_t* block, std::int64_t inputs, float* y,
                       std::int64_t y_stride) {
  for (std::int64_t m = 0; m < rows; ++m, x += x_stride, y += y_stride) {
    for (int n = 0; n < kBlock; ++n) y[n] = 0;
    for (std::int64_t k = 0; k < inputs; ++k)
      for (int n = 0; n < kBlock; ++n)
        y[n] += widened(x[k]) * widened(block[(k / 2 * kBlock + n) * 2 + k % 2]);
  }
}

/// Adds to y [64] the products of row m of a tile of M with the inputs of a group of a weight, not
/// scaled by the row's.
template <int kBits>
void add_group(const ByteRows& x, std::int64_t m, std::int64_t M, const std::uint8_t* group,
               float* y) {
  constexpr std::int64_t kCount = group_inputs(kBits), kHalf = kCount / 2;
  const auto* weights = group + 2 * kBlock;
  for (std::int64_t n = 0; n < kBlock; ++n) {
    std::int32_t sum = x.starts[m];
    for (std::int64_t k = 0; k < kCount; ++k) {
      const auto place = kBits == 8 ? k : k % kHalf;
      const int byte = weights[(place / 4 * kBlock + n) * 4 + place % 4];
      sum += x.values[(k / 4 * M + m) * 4 + k % 4] * (kBits == 8  ? byte
                                                      : k < kHalf ? byte & 15
                                                                  : byte >> 4);
    }
    std::uint16_t scale;
    __builtin_memcpy(&scale, group + 2 * n, sizeof scale);
    y[n] += static_cast<float>(sum) * widened(scale);
  }
}

template <int kBits>
void multiply_bytes(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                    std::int64_t inputs, float* y) {
  for (std::int64_t row = 0; row < rows;) {
    const auto M = tile_rows(rows - row);
    const auto tile = x.at_row(row, kBits);
    for (std::int64_t m = 0; m < M; ++m, ++row, y += kBlock) {
      for (int n = 0; n < kBlock; ++n) y[n] = 0;
      const auto* group = block;
      for (std::int64_t k = 0; k < inputs; k += kRowGroup) {
        float part[kBlock] = {};
        for (auto i = k; i < inputs && i < k + kRowGroup;
             i += group_inputs(kBits), group += group_bytes(kBits))
          add_group<kBits>(tile.at_input(i, M, kBits), m, M, group, part);
        const float scale = tile.at_input(k, M, kBits).scales[m];
        for (int n = 0; n < kBlock; ++n) y[n] += part[n] * scale;
      }
    }
  }
}

void quantize_row(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                  std::int32_t* sums, float* rest) {
  for (std::int64_t k = 0; k < inputs; k += kRowGroup) {
    const auto end = k + kRowGroup < inputs ? k + kRowGroup : inputs;
    float largest = 0;
    bool is_strange = false;
    for (auto i = k; i < end; ++i) {
      largest = std::max(largest, std::abs(x[i]));
      is_strange = is_strange || !(std::abs(x[i]) <= 3.4e38F);
    }
    const auto scale = scale_of(largest / 127);
    *scales++ = is_strange ? std::numeric_limits<float>::quiet_NaN() : scale.size;
    for (auto i = k; i < end; ++i) {
      const float whole = is_strange ? 0 : std::nearbyint(x[i] * scale.inverse);
      values[i] = static_cast<std::int8_t>(whole);
      if (rest) rest[i] = std::fma(-whole, scale.size, x[i]);
    }
  }
  for (std::int64_t k = 0; k < inputs; k += 32)
    *sums++ = std::accumulate(values + k, values + k + 32, 0);
}

void pack_rows(const std::uint16_t* weight, std::int64_t stride, std::int64_t rows,
               std::int64_t inputs, std::uint16_t* block) {
  for (std::int64_t k = 0; k < inputs; ++k)
    for (std::int64_t n = 0; n < kBlock; ++n)
      block[(k / 2 * kBlock + n) * 2 + k % 2] = n < rows ? weight[n * stride + k] : 0;
}

void pack_columns(const std::uint16_t* values, std::int64_t stride, std::int64_t keys,
                  std::int64_t width, std::uint16_t* block) {
  for (std::int64_t key = 0; key < round_up(keys, 2); ++key)
    for (std::int64_t n = 0; n < kBlock; ++n)
      block[(key / 2 * kBlock + n) * 2 + key % 2] =
          n < width && key < keys ? values[key * stride + n] : 0;
}

/// Scores [L] to weights whose sum is returned.
float soften(float* scores, std::int64_t keys, float scale) {
  float largest = scores[0], sum = 0;
  for (std::int64_t key = 1; key < keys; ++key)
    largest = largest < scores[key] ? scores[key] : largest;
  for (std::int64_t key = 0; key < keys; ++key)
    sum += scores[key] = std::exp((scores[key] - largest) * scale);
  return sum;
}

void attend(const AttentionHead& head, float* scores) {
  const auto E = head.head_size, pairs = round_up(head.num_keys, 2);
  for (std::int64_t t = 0; t < head.num_queries; ++t) {
    const auto seen = head.is_causal ? head.first + t + 1 : head.num_keys;
    const auto* q = head.q + t * head.q_stride;
    for (std::int64_t key = 0; key < seen; ++key) {
      const auto* block = head.keys + key / kBlock * kBlock * E;
      scores[key] = 0;
      for (std::int64_t e = 0; e < E; ++e)
        scores[key] += widened(q[e]) * widened(block[(e / 2 * kBlock + key % kBlock) * 2 + e % 2]);
    }
    const float sum = soften(scores, seen, head.scale);
    for (std::int64_t e = 0; e < E; ++e) {
      const auto* block = head.values + e / kBlock * kBlock * pairs;
      float output = 0;
      for (std::int64_t key = 0; key < seen; ++key)
        output += scores[key] * widened(block[(key / 2 * kBlock + e % kBlock) * 2 + key % 2]);
      head.output[t * head.output_stride + e] = narrowed(output / sum);
    }
  }
}

void attend_one(const OneQuery& query) {
  const auto E = query.head_size;
  for (std::int64_t head = 0; head < query.num_heads; ++head) {
    for (std::int64_t key = 0; key < query.num_keys; ++key) {
      query.weights[key] = 0;
      for (std::int64_t e = 0; e < E; ++e)
        query.weights[key] += widened(query.q[head * E + e]) * widened(query.keys[key * E + e]);
    }
    const float sum = soften(query.weights, query.num_keys, query.scale);
    for (std::int64_t e = 0; e < E; ++e) {
      float output = 0;
      for (std::int64_t key = 0; key < query.num_keys; ++key)
        output += query.weights[key] * widened(query.values[key * E + e]);
      query.output[head * E + e] = narrowed(output / sum);
    }
  }
}

void store_bfloat16(const float* y, std::int64_t y_stride, std::int64_t rows, std::int64_t outputs,
                    const float* bias, std::uint16_t* to, std::int64_t to_stride) {
  for (std::int64_t m = 0; m < rows; ++m)
    for (std::int64_t n = 0; n < outputs; ++n)
      to[m * to_stride + n] = narrowed(y[m * y_stride + n] + (bias ? bias[n] : 0));
}

/// A result of an operation on bfloat16 numbers, as a float.
float rounded(float x) { return widened(narrowed(x)); }

void widen_row(const std::uint16_t* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = widened(x[i]);
}

void rms_norm(const std::uint16_t* x, const std::uint16_t* weight, std::int64_t width, float eps,
              std::uint16_t* y) {
  float squares = 0;
  for (std::int64_t i = 0; i < width; ++i) squares += widened(x[i]) * widened(x[i]);
  const float scale = 1 / std::sqrt(squares / static_cast<float>(width) + eps);
  for (std::int64_t i = 0; i < width; ++i)
    y[i] = narrowed(widened(weight[i]) * rounded(widened(x[i]) * scale));
}

void add(const std::uint16_t* x, const std::uint16_t* other, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = narrowed(widened(x[i]) + widened(other[i]));
}

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

void swiglu(const std::uint16_t* gate, const std::uint16_t* up, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = widened(gate[i]);
    y[i] = narrowed(rounded(g * sigmoid(g)) * widened(up[i]));
  }
}

void quick_gelu(const std::uint16_t* x, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float v = widened(x[i]);
    y[i] = narrowed(v * rounded(sigmoid(rounded(1.702F * v))));
  }
}

void rotate(const std::uint16_t* x, const std::uint16_t* cos, const std::uint16_t* sin,
            std::int64_t half, std::uint16_t* y) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = widened(x[i]), b = widened(x[half + i]), c = widened(cos[i]),
                s = widened(sin[i]);
    y[i] = narrowed(rounded(a * c) - rounded(b * s));
    y[half + i] = narrowed(rounded(b * c) + rounded(a * s));
  }
}

}  // namespace

const Kernels& plain_kernels() {
  static const Kernels kernels{"plain",
                               multiply_bfloat16,
                               multiply_bytes<8>,
                               multiply_bytes<4>,
                               quantize_row,
                               widen_row,
                               pack_rows,
                               pack_int8,
                               pack_int4,
                               pack_columns,
                               attend,
                               attend_one,
                               store_bfloat16,
                               rms_norm,
                               add,
                               swiglu,
                               quick_gelu,
                               rotate};
  return kernels;
}

const Kernels& kernels() {
  static const Kernels* const best = avx512_kernels() ? avx512_kernels() : &plain_kernels();
  return *best;
}

}  // namespace llava::nn::cpu
