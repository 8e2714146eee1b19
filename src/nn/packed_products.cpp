#include "packed_products.h"

#include "cpu_kernels.h"

#include <ATen/Parallel.h>

#include <cstring>
#include <optional>

namespace llava::nn {
namespace {

constexpr std::int64_t kWorthAThread = 1 << 18;  // multiplications
constexpr std::int64_t kRowsAtOnce = 96;         // rows of x whose outputs wait in the cache
static_assert(cpu::tile_rows(kRowsAtOnce) == 6 && kRowsAtOnce % 6 == 0);

int bits_of(Packing packing) { return packing == Packing::int8 ? 8 : 4; }

/// Rows as bytes, quantised once for all weights. Those of few rows, as decode has, lie in room
/// that is kept, so only one of a thread lives at a time.
class Bytes {
 public:
  Bytes(const InputRows& x, int bits)
      : x_(x),
        bits_(bits),
        group_(CoarseInputs::is_on() ? 64 : 32),
        inputs_(cpu::round_up(x.inputs, 64)) {
    const auto count = x.rows * inputs_, scales = count / group_;
    const auto starts = count / cpu::ByteRows::summed(bits, group_);
    const auto bytes =
        count + scales * std::int64_t{sizeof(float)} + starts * std::int64_t{sizeof(std::int32_t)};
    if (x.rows > kFewRows) owned_.reset(new std::int8_t[static_cast<std::size_t>(bytes)]);
    values_ = owned_ ? owned_.get() : scratch<std::int8_t, struct KeptBytes>(bytes);
    scales_ = reinterpret_cast<float*>(values_ + count);  // whole groups: aligned
    starts_ = reinterpret_cast<std::int32_t*>(scales_ + scales);
    const auto tiles = (x.rows + kTile - 1) / kTile;
    at::parallel_for(0, tiles, kFewRows / kTile, [&](std::int64_t begin, std::int64_t end) {
      const auto last = std::min(x_.rows, end * kTile);
      for (auto row = begin * kTile; row < last;) {
        const auto rows = cpu::tile_rows(x_.rows - row);
        for (std::int64_t m = 0; m < rows; ++m) quantize(row, m, rows);
        row += rows;
      }
    });
  }

  cpu::ByteRows from(std::int64_t row) const {
    return cpu::ByteRows{values_, scales_, starts_, inputs_, group_}.at_row(row, bits_);
  }

 private:
  static constexpr std::int64_t kFewRows = 16, kTile = 6;

  /// Row m of the tile of M rows that begins with `first`.
  void quantize(std::int64_t first, std::int64_t m, std::int64_t M) const {
    const auto& kernels = cpu::kernels();
    const float* from = nullptr;
    if (x_.is_bfloat16 || x_.inputs < inputs_) {
      auto* wide = scratch<float, struct WideRow>(inputs_);
      const auto offset = (first + m) * x_.inputs;
      if (x_.is_bfloat16)
        kernels.widen_row(static_cast<const std::uint16_t*>(x_.data) + offset, x_.inputs, wide);
      else
        std::memcpy(wide, static_cast<const float*>(x_.data) + offset,
                    static_cast<std::size_t>(x_.inputs) * sizeof(float));
      std::fill(wide + x_.inputs, wide + inputs_, 0.0F);
      from = wide;
    } else {
      from = static_cast<const float*>(x_.data) + (first + m) * x_.inputs;
    }
    auto* values = scratch<std::int8_t, struct RowBytes>(inputs_);
    auto* scales = scratch<float, struct RowScales>(inputs_ / 32);
    auto* sums = scratch<std::int32_t, struct RowSums>(inputs_ / 32);
    kernels.quantize_row(from, inputs_, group_, values, scales, sums);

    auto* to = values_ + first * inputs_ + 4 * m;
    for (std::int64_t k = 0; k < inputs_; k += 4, to += 4 * M) std::memcpy(to, values + k, 4);
    const auto groups = inputs_ / group_;
    for (std::int64_t g = 0; g < groups; ++g) scales_[first * groups + g * M + m] = scales[g];
    const auto summed = cpu::ByteRows::summed(bits_, group_) / 32;  // of `sums`
    const auto num_starts = inputs_ / 32 / summed;
    for (std::int64_t s = 0; s < num_starts; ++s, sums += summed)
      starts_[first * num_starts + s * M + m] =
          (bits_ == 8 ? -128 : -8) * (summed == 1 ? sums[0] : sums[0] + sums[1]);
  }

  InputRows x_;
  int bits_;
  std::int64_t group_;   // inputs with one scale
  std::int64_t inputs_;  // whole groups
  std::unique_ptr<std::int8_t[]> owned_;
  std::int8_t* values_;
  float* scales_;
  std::int32_t* starts_;
};

/// A tile [rows, 64] of a block's outputs to where they belong in y [T, N].
void store(const float* tile, std::int64_t rows, std::int64_t column, std::int64_t row,
           const Product& product, bool y_is_bfloat16) {
  const auto N = product.weight->outputs();
  const auto count = std::min(cpu::kBlock, N - column);
  const float* added = product.bias ? product.bias + column : nullptr;
  if (y_is_bfloat16) {
    cpu::kernels().store_bfloat16(tile, cpu::kBlock, rows, count, added,
                                  static_cast<std::uint16_t*>(product.y) + row * N + column, N);
    return;
  }
  for (std::int64_t m = 0; m < rows; ++m) {
    auto* to = static_cast<float*>(product.y) + (row + m) * N + column;
    for (std::int64_t n = 0; n < count; ++n)
      to[n] = tile[m * cpu::kBlock + n] + (added ? added[n] : 0);
  }
}

/// Rows of x, or of the bytes made of it, times a block of a weight: a tile [rows, 64].
void multiply_block(const InputRows& x, const Bytes* bytes, std::int64_t row, std::int64_t rows,
                    const PackedWeight& weight, std::int64_t block, float* tile) {
  const auto& kernels = cpu::kernels();
  const auto K = padded_inputs(x.inputs, weight.packing());
  const auto* from = weight.block(block);
  if (weight.packing() == Packing::bfloat16) {
    kernels.multiply_bfloat16(static_cast<const std::uint16_t*>(x.data) + row * K, K, rows,
                              reinterpret_cast<const std::uint16_t*>(from), K, tile, cpu::kBlock);
  } else {
    const bool is_int8 = weight.packing() == Packing::int8;
    (is_int8 ? kernels.multiply_int8 : kernels.multiply_int4)(bytes->from(row), rows, from, K,
                                                              tile);
  }
}

}  // namespace

std::int64_t padded_inputs(std::int64_t inputs, Packing packing) {
  return packing == Packing::bfloat16 ? inputs
                                      : cpu::round_up(inputs, cpu::group_inputs(bits_of(packing)));
}

void multiply_rows(const InputRows& x, std::span<const Product> products, bool y_is_bfloat16) {
  const auto packing = products[0].weight->packing();
  std::optional<Bytes> bytes;
  if (packing != Packing::bfloat16) bytes.emplace(x, bits_of(packing));
  std::int64_t blocks = 0;
  for (const auto& product : products) blocks += product.weight->num_blocks();
  const auto grain = std::max<std::int64_t>(1, kWorthAThread / (cpu::kBlock * x.inputs * x.rows));
  at::parallel_for(0, blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    auto* tile = scratch<float, struct Tile>(kRowsAtOnce * cpu::kBlock);
    for (auto i = begin; i < end; ++i) {
      auto block = i;
      const auto* product = products.data();
      while (block >= product->weight->num_blocks()) block -= product++->weight->num_blocks();
      for (std::int64_t row = 0; row < x.rows; row += kRowsAtOnce) {
        const auto rows = std::min(kRowsAtOnce, x.rows - row);
        multiply_block(x, bytes ? &*bytes : nullptr, row, rows, *product->weight, block, tile);
        store(tile, rows, block * cpu::kBlock, row, *product, y_is_bfloat16);
      }
    }
  });
}

}  // namespace llava::nn
