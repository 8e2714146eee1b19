#include "packed_products.h"

#include "cpu_kernels.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cstring>
#include <numeric>
#include <optional>

namespace llava::nn {
namespace {

constexpr std::int64_t kWorthAThread = 1 << 18;  // multiplications
constexpr std::int64_t kRowsAtOnce = 96;         // rows of x whose outputs wait in the cache
static_assert(cpu::tile_rows(kRowsAtOnce) == 6 && kRowsAtOnce % 6 == 0);

int bits_of(Packing packing) { return packing == Packing::int8 ? 8 : 4; }

/// Rows as bytes, quantised once for all weights. A row becomes one row of bytes where coarse
/// inputs will do; else two, one behind the other, the second of what the first leaves. Those of
/// few rows, as decode has, lie in room that is kept, so only one of a thread lives at a time.
class Bytes {
 public:
  Bytes(const InputRows& x, int bits)
      : x_(x),
        bits_(bits),
        parts_(CoarseInputs::is_on() ? 1 : 2),
        inputs_(cpu::round_up(x.inputs, cpu::kInputs)) {
    const auto count = rows() * inputs_, scales = rows() * cpu::row_groups(inputs_);
    const auto starts = count / cpu::group_inputs(bits);
    const auto bytes =
        count + scales * std::int64_t{sizeof(float)} + starts * std::int64_t{sizeof(std::int32_t)};
    if (x.rows > kFewRows) owned_.reset(new std::int8_t[static_cast<std::size_t>(bytes)]);
    values_ = owned_ ? owned_.get() : scratch<std::int8_t, struct KeptBytes>(bytes);
    scales_ = reinterpret_cast<float*>(values_ + count);  // whole groups: aligned
    starts_ = reinterpret_cast<std::int32_t*>(scales_ + scales);
    const auto tiles = (rows() + kTile - 1) / kTile;
    at::parallel_for(0, tiles, kFewRows / kTile, [&](std::int64_t begin, std::int64_t end) {
      const auto last = std::min(rows(), end * kTile);
      for (auto row = begin * kTile; row < last;) {
        const auto count = cpu::tile_rows(rows() - row);
        for (std::int64_t m = 0; m < count; m += parts_) quantize(row, m, count);
        row += count;
      }
    });
  }

  /// Rows of bytes, as many for each row of x.
  std::int64_t rows() const { return x_.rows * parts_; }
  std::int64_t parts() const { return parts_; }

  cpu::ByteRows from(std::int64_t row) const {
    return cpu::ByteRows{values_, scales_, starts_, inputs_}.at_row(row, bits_);
  }

 private:
  static constexpr std::int64_t kFewRows = 16, kTile = 6;

  /// The row of x that becomes row m, and perhaps m + 1, of the tile of M rows that begins with
  /// `first`.
  void quantize(std::int64_t first, std::int64_t m, std::int64_t M) const {
    auto* wide = scratch<float, struct WideRow>(inputs_);
    const auto offset = (first + m) / parts_ * x_.inputs;
    if (x_.is_bfloat16)
      cpu::kernels().widen_row(static_cast<const std::uint16_t*>(x_.data) + offset, x_.inputs,
                               wide);
    else
      std::copy_n(static_cast<const float*>(x_.data) + offset, x_.inputs, wide);
    std::fill(wide + x_.inputs, wide + inputs_, 0.0F);
    for (std::int64_t part = 0; part < parts_; ++part)
      place(wide, first, m + part, M, /*leaves_rest=*/part + 1 < parts_);
  }

  /// `row` as row m of a tile, and what that leaves of it in its place.
  void place(float* row, std::int64_t first, std::int64_t m, std::int64_t M,
             bool leaves_rest) const {
    auto* values = scratch<std::int8_t, struct RowBytes>(inputs_);
    auto* scales = scratch<float, struct RowScales>(cpu::row_groups(inputs_));
    auto* sums = scratch<std::int32_t, struct RowSums>(inputs_ / 32);
    cpu::kernels().quantize_row(row, inputs_, values, scales, sums, leaves_rest ? row : nullptr);

    auto* to = values_ + first * inputs_ + 4 * m;
    for (std::int64_t k = 0; k < inputs_; k += 4, to += 4 * M) std::memcpy(to, values + k, 4);
    const auto groups = cpu::row_groups(inputs_);
    for (std::int64_t g = 0; g < groups; ++g) scales_[first * groups + g * M + m] = scales[g];
    const auto summed = cpu::group_inputs(bits_) / 32, num_starts = inputs_ / 32 / summed;
    for (std::int64_t g = 0; g < num_starts; ++g, sums += summed)
      starts_[first * num_starts + g * M + m] =
          (bits_ == 8 ? -128 : -8) * std::accumulate(sums, sums + summed, 0);
  }

  InputRows x_;
  int bits_;
  std::int64_t parts_;   // rows of bytes for one of x
  std::int64_t inputs_;  // whole groups
  std::unique_ptr<std::int8_t[]> owned_;
  std::int8_t* values_;
  float* scales_;
  std::int32_t* starts_;
};

/// A tile of a product's block: as many of its rows and columns as there are.
struct Part {
  const Product& product;
  std::int64_t column, row, rows;

  std::int64_t columns() const { return std::min(cpu::kBlock, product.weight->outputs() - column); }
  const float* bias() const { return product.bias ? product.bias + column : nullptr; }
  /// Where row m begins in an array that lies like y.
  template <class T>
  T* place(T* all, std::int64_t m) const {
    return all + (row + m) * product.weight->outputs() + column;
  }
  /// `sums` [rows, 64] as bfloat16 numbers, `stride` apart.
  void narrow(const float* sums, std::uint16_t* to, std::int64_t stride) const {
    cpu::kernels().store_bfloat16(sums, cpu::kBlock, rows, columns(), bias(), to, stride);
  }
};

void store(const Part& part, const float* sums, bool y_is_bfloat16) {
  if (y_is_bfloat16)
    return part.narrow(sums, part.place(static_cast<std::uint16_t*>(part.product.y), 0),
                       part.product.weight->outputs());
  for (std::int64_t m = 0; m < part.rows; ++m) {
    auto* to = part.place(static_cast<float*>(part.product.y), m);
    for (std::int64_t n = 0; n < part.columns(); ++n)
      to[n] = sums[m * cpu::kBlock + n] + (part.bias() ? part.bias()[n] : 0);
  }
}

/// Rows of x times a block of a bfloat16 weight: a tile [rows, 64].
void multiply_block(const InputRows& x, std::int64_t row, std::int64_t rows,
                    const PackedWeight& weight, std::int64_t block, float* tile) {
  cpu::kernels().multiply_bfloat16(
      static_cast<const std::uint16_t*>(x.data) + row * x.inputs, x.inputs, rows,
      reinterpret_cast<const std::uint16_t*>(weight.block(block)), x.inputs, tile, cpu::kBlock);
}

/// The same of the bytes made of x, and a quantised weight.
void multiply_block(const Bytes& bytes, std::int64_t row, std::int64_t rows,
                    const PackedWeight& weight, std::int64_t block, float* tile) {
  const auto& kernels = cpu::kernels();
  const auto multiply =
      weight.packing() == Packing::int8 ? kernels.multiply_int8 : kernels.multiply_int4;
  multiply(bytes.from(row * bytes.parts()), rows * bytes.parts(), weight.block(block),
           padded_inputs(weight.inputs(), weight.packing()), tile);
  if (bytes.parts() == 1) return;
  for (std::int64_t m = 0; m < rows; ++m)
    for (std::int64_t n = 0; n < cpu::kBlock; ++n)
      tile[m * cpu::kBlock + n] =
          tile[2 * m * cpu::kBlock + n] + tile[(2 * m + 1) * cpu::kBlock + n];
}

}  // namespace

std::int64_t padded_inputs(std::int64_t inputs, Packing packing) {
  return packing == Packing::bfloat16 ? inputs
                                      : cpu::round_up(inputs, cpu::group_inputs(bits_of(packing)));
}

namespace {

/// Calls work(block, row, rows) for all blocks and every kRowsAtOnce rows. Threads take the next
/// blocks as they are done, since others' work may hold one of them up.
template <class Work>
void for_blocks(const InputRows& x, std::int64_t blocks, const Work& work) {
  const auto grain = std::max<std::int64_t>(1, kWorthAThread / (cpu::kBlock * x.inputs * x.rows));
  const auto threads = std::min<std::int64_t>(at::get_num_threads(), (blocks + grain - 1) / grain);
  std::atomic<std::int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto thread = begin; thread < end; ++thread)
      for (auto first = next.fetch_add(grain); first < blocks; first = next.fetch_add(grain))
        for (auto block = first; block < std::min(blocks, first + grain); ++block)
          for (std::int64_t row = 0; row < x.rows; row += kRowsAtOnce)
            work(block, row, std::min(kRowsAtOnce, x.rows - row));
  });
}

/// An input as the weights of one packing take it.
class Input {
 public:
  Input(const InputRows& x, Packing packing) : x_(x) {
    if (packing != Packing::bfloat16) bytes_.emplace(x, bits_of(packing));
  }
  /// Sums [rows, 64] of a block, in room that is kept for `Use`.
  template <class Use>
  const float* multiply(const PackedWeight& weight, std::int64_t block, std::int64_t row,
                        std::int64_t rows) const {
    auto* sums = scratch<float, Use>(2 * kRowsAtOnce * cpu::kBlock);
    if (bytes_)
      multiply_block(*bytes_, row, rows, weight, block, sums);
    else
      multiply_block(x_, row, rows, weight, block, sums);
    return sums;
  }

 private:
  InputRows x_;
  std::optional<Bytes> bytes_;
};

}  // namespace

void multiply_rows(const InputRows& x, std::span<const Product> products, bool y_is_bfloat16) {
  const Input input(x, products[0].weight->packing());
  std::int64_t blocks = 0;
  for (const auto& product : products) blocks += product.weight->num_blocks();
  for_blocks(x, blocks, [&](std::int64_t block, std::int64_t row, std::int64_t rows) {
    const auto* product = products.data();
    while (block >= product->weight->num_blocks()) block -= product++->weight->num_blocks();
    const auto* sums = input.multiply<struct Sums>(*product->weight, block, row, rows);
    store({*product, block * cpu::kBlock, row, rows}, sums, y_is_bfloat16);
  });
}

void multiply_and_add(const InputRows& x, const Product& product, const std::uint16_t* added) {
  const Input input(x, product.weight->packing());
  const auto blocks = product.weight->num_blocks();
  for_blocks(x, blocks, [&](std::int64_t block, std::int64_t row, std::int64_t rows) {
    const Part part{product, block * cpu::kBlock, row, rows};
    auto* bits = scratch<std::uint16_t, struct Narrowed>(kRowsAtOnce * cpu::kBlock);
    part.narrow(input.multiply<struct Sums>(*product.weight, block, row, rows), bits, cpu::kBlock);
    for (std::int64_t m = 0; m < rows; ++m)
      cpu::kernels().add(part.place(added, m), bits + m * cpu::kBlock, part.columns(),
                         part.place(static_cast<std::uint16_t*>(product.y), m));
  });
}

void multiply_gated(const InputRows& x, const Product& gate, const Product& up) {
  const Input input(x, gate.weight->packing());
  const auto blocks = gate.weight->num_blocks();
  for_blocks(x, blocks, [&](std::int64_t block, std::int64_t row, std::int64_t rows) {
    auto* bits = scratch<std::uint16_t, struct Narrowed>(2 * kRowsAtOnce * cpu::kBlock);
    auto* other = bits + kRowsAtOnce * cpu::kBlock;
    const Part part{gate, block * cpu::kBlock, row, rows};
    part.narrow(input.multiply<struct Sums>(*gate.weight, block, row, rows), bits, cpu::kBlock);
    Part{up, block * cpu::kBlock, row, rows}.narrow(
        input.multiply<struct Sums>(*up.weight, block, row, rows), other, cpu::kBlock);
    for (std::int64_t m = 0; m < rows; ++m)
      cpu::kernels().swiglu(bits + m * cpu::kBlock, other + m * cpu::kBlock, part.columns(),
                            part.place(static_cast<std::uint16_t*>(gate.y), m));
  });
}

}  // namespace llava::nn
