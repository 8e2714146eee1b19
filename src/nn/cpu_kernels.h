// Inner loops of inference on CPUs, written for AVX-512 with bfloat16 and byte products, and
// plainly for every other CPU. No torch here, and nothing that allocates.
//   N outputs of a weight   K inputs   M rows of x   L keys   E head size
//
// A weight [N, K] is kept in blocks of 64 outputs, so that one product reads it from front to back,
// for one row (decode) as for many (prefill):
//   bfloat16  [N/64][K/2][64][2]
//   int8      [N/64][K/128] groups, each 64 scales (bfloat16) and [32][64][4] bytes, 128 added
//   int4      [N/64][K/32] groups, each 64 scales and [4][64][4] bytes: inputs 4i ... in the low
//             half, 16 + 4i ... in the high one, 8 added
// A row's products are summed in one order, so they do not depend on the rows beside it.
#pragma once

#include <cstdint>

namespace llava::nn::cpu {

constexpr std::int64_t kBlock = 64;  // outputs of a block
/// Inputs of a weight with one scale, and the bytes of such a group of a block.
constexpr std::int64_t group_inputs(int bits) { return bits == 8 ? 128 : 32; }
constexpr std::int64_t group_bytes(int bits) {
  return 2 * kBlock + group_inputs(bits) * kBlock * bits / 8;
}

/// Rows go together in tiles: of six while there are as many, then of four, two and one.
constexpr std::int64_t tile_rows(std::int64_t left) {
  return left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

constexpr std::int64_t kInputs = 128;    // of which rows of bytes have a multiple
constexpr std::int64_t kRowGroup = 512;  // inputs of a row of bytes with one scale, but the last
constexpr std::int64_t row_groups(std::int64_t inputs) {
  return (inputs + kRowGroup - 1) / kRowGroup;
}

/// Rows of x as bytes, tile behind tile. A tile of M rows has values [K/4][M][4], scales
/// [row_groups(K)][M] and, per group of the weight, where sums of products begin, [groups][M]: at
/// what takes away again what was added to the weights.
struct ByteRows {
  const std::int8_t* values;
  const float* scales;
  const std::int32_t* starts;
  std::int64_t inputs;  // K

  /// What begins with the tile of another row.
  ByteRows at_row(std::int64_t row, int bits) const {
    return {values + row * inputs, scales + row * row_groups(inputs),
            starts + row * inputs / group_inputs(bits), inputs};
  }
  /// What begins with another group of a tile of M rows.
  ByteRows at_input(std::int64_t input, std::int64_t M, int bits) const {
    return {values + input * M, scales + input / kRowGroup * M,
            starts + input / group_inputs(bits) * M, inputs};
  }
};

/// Attention of some queries of one head. Strides count elements; `keys` and `values` are packed by
/// pack_rows and pack_columns, whole blocks of 64.
struct AttentionHead {
  const std::uint16_t* q;  // [T, E] bfloat16
  std::int64_t q_stride, num_queries, head_size;
  const std::uint16_t *keys, *values;
  std::int64_t num_keys;
  std::int64_t first;     // keys before the first query: query t sees keys 0 ... first + t
  bool is_causal;         // false: every query sees every key
  float scale;            // of the scores
  std::uint16_t* output;  // [T, E]
  std::int64_t output_stride;
};

/// One new query for each of G heads that share their keys and values.
struct OneQuery {
  const std::uint16_t* q;  // [G, E] bfloat16
  std::int64_t num_heads, head_size;
  const std::uint16_t *keys, *values;  // [L, E]
  std::int64_t num_keys;
  float scale;
  std::uint16_t* output;  // [G, E]
  float* weights;         // scratch [L rounded up to 16]
};

struct Kernels {
  const char* name;

  /// y [M, 64] of one block; x [M, K] bfloat16 with rows `x_stride` apart, y's `y_stride`.
  void (*multiply_bfloat16)(const std::uint16_t* x, std::int64_t x_stride, std::int64_t rows,
                            const std::uint16_t* block, std::int64_t inputs, float* y,
                            std::int64_t y_stride);
  /// The same of whole tiles of bytes.
  void (*multiply_int8)(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                        std::int64_t inputs, float* y);
  void (*multiply_int4)(const ByteRows& x, std::int64_t rows, const std::uint8_t* block,
                        std::int64_t inputs, float* y);

  /// One row of K numbers to bytes: a scale per group of 512, max|x| / 127; not a number where one
  /// of the group is not finite. `sums` [K/32] are the values'. `rest` [K], which may be x: where
  /// what the bytes leave of x goes, or nullptr.
  void (*quantize_row)(const float* x, std::int64_t inputs, std::int8_t* values, float* scales,
                       std::int32_t* sums, float* rest);
  void (*widen_row)(const std::uint16_t* x, std::int64_t n, float* y);

  /// Up to 64 rows of a weight [rows, K] into a block; missing rows are zeros.
  void (*pack_rows)(const std::uint16_t* weight, std::int64_t stride, std::int64_t rows,
                    std::int64_t inputs, std::uint16_t* block);
  void (*pack_int8)(const float* weight, std::int64_t stride, std::int64_t rows,
                    std::int64_t inputs, std::uint8_t* block);
  void (*pack_int4)(const float* weight, std::int64_t stride, std::int64_t rows,
                    std::int64_t inputs, std::uint8_t* block);

  /// Values [L, width <= 64] as a weight with the keys as inputs: a block [ceil(L/2)][64][2].
  void (*pack_columns)(const std::uint16_t* values, std::int64_t stride, std::int64_t keys,
                       std::int64_t width, std::uint16_t* block);

  /// Softmax in fp32; `scratch` holds attention_scratch() floats.
  void (*attend)(const AttentionHead& head, float* scratch);
  void (*attend_one)(const OneQuery& query);

  /// y [rows, outputs] and a bias, which may be nullptr, to bfloat16.
  void (*store_bfloat16)(const float* y, std::int64_t y_stride, std::int64_t rows,
                         std::int64_t outputs, const float* bias, std::uint16_t* to,
                         std::int64_t to_stride);

  // One row each, of bfloat16 numbers; y may be x. What an operation of its own would round is
  // rounded here.
  void (*rms_norm)(const std::uint16_t* x, const std::uint16_t* weight, std::int64_t width,
                   float eps, std::uint16_t* y);
  void (*add)(const std::uint16_t* x, const std::uint16_t* other, std::int64_t n, std::uint16_t* y);
  void (*swiglu)(const std::uint16_t* gate, const std::uint16_t* up, std::int64_t n,
                 std::uint16_t* y);
  void (*quick_gelu)(const std::uint16_t* x, std::int64_t n, std::uint16_t* y);
  void (*rotate)(const std::uint16_t* x, const std::uint16_t* cos, const std::uint16_t* sin,
                 std::int64_t half, std::uint16_t* y);  // x [2 * half]
};

constexpr std::int64_t kQueries = 48;  // queries that attend() takes at once

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Scores, the weights made of them (two bytes each), and outputs.
constexpr std::int64_t attention_scratch(std::int64_t num_keys, std::int64_t head_size) {
  return kQueries * (round_up(num_keys, kBlock) * 3 / 2 + round_up(head_size, kBlock));
}

/// Those for this CPU. Every kernel of the plain set works everywhere.
const Kernels& kernels();
const Kernels& plain_kernels();
const Kernels* avx512_kernels();  // nullptr where they were not compiled or the CPU lacks them

}  // namespace llava::nn::cpu
