// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share. What lies above the diagonal is left out in steps of 6 queries and 16
// keys.
#include "cpu_flash_kernels.h"

#if defined(__AVX512BF16__)

#include "cpu_flash_tiles.h"

namespace llava::nn::cpu {
namespace {

constexpr std::int64_t kForwardRows = 24;  // queries whose scores wait in the cache

/// What a row's heads share, and room for the scores of some queries.
template <class Element>
struct ForwardRoom {
  ForwardRoom(const FlashRow<Element>& row, float* scratch)
      : key_words(words<Element>(row.head_size) * kBlock),
        value_words(words<Element>(row.length) * kBlock),
        stride(round_up(row.length, kBlock) + 16) {
    keys = scratch;
    values = keys + round_up(row.length, kBlock) * row.head_size;
    scores = values + round_up(row.length, 2) * round_up(row.head_size, kBlock);
    sums = scores + kForwardRows * stride;
    weights = reinterpret_cast<Element*>(sums + kRows * kBlock);
    const auto& own = products<Element>();
    for (std::int64_t key = 0; key < row.length; key += kBlock)
      own.pack_rows(row.k + key * row.kv_stride, row.kv_stride, at_most(kBlock, row.length - key),
                    row.head_size, reinterpret_cast<Element*>(keys + key / kBlock * key_words));
    for (std::int64_t e = 0; e < row.head_size; e += kBlock)
      own.pack_columns(row.v + e, row.kv_stride, row.length, at_most(kBlock, row.head_size - e),
                       reinterpret_cast<Element*>(values + e / kBlock * value_words));
  }

  std::int64_t key_words, value_words;  // of a panel
  std::int64_t stride;                  // of scores and weights
  float *keys, *values;                 // panels of 64 keys, of 64 columns
  float* scores;                        // [kForwardRows][stride]
  float* sums;                          // [kRows][64]
  Element* weights;                     // [kForwardRows][stride]; bfloat16 only
};

/// Scores become weights, undivided and up to `end` of them, zeros past `seen`. Returns their sum,
/// and the score that was taken from each.
template <class Element>
float soften(const float* scores, std::int64_t seen, std::int64_t end, float scale, float& top,
             Element* weights) {
  auto largest = _mm512_set1_ps(-3.0e38F);
  for (std::int64_t key = 0; key < seen; key += 16) {
    const auto mask = first_lanes(seen - key);
    largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_loadu_ps(scores + key));
  }
  top = _mm512_reduce_max_ps(largest) * scale;
  const auto factor = _mm512_set1_ps(scale), taken = _mm512_set1_ps(top);
  auto sum = _mm512_setzero_ps();
  for (std::int64_t key = 0; key < end; key += 16) {
    const auto scaled = _mm512_fmsub_ps(_mm512_loadu_ps(scores + key), factor, taken);
    const auto weight = _mm512_maskz_mov_ps(first_lanes(seen - key), exponential(scaled));
    sum = _mm512_add_ps(sum, weight);
    write(weights + key, 0xffff, weight);
  }
  return _mm512_reduce_add_ps(sum);
}

/// Queries [begin, begin + rows <= kForwardRows) of one head.
template <class Element>
void forward_some(const FlashRow<Element>& row, const ForwardRoom<Element>& room, const Element* q,
                  std::int64_t begin, std::int64_t rows, Element* output, float* log_sums) {
  const auto E = row.head_size;
  const auto end_of = [&](std::int64_t m) {  // keys that one of the queries m ... sees
    return row.is_causal ? begin + at_most(rows, m + kRows) : row.length;
  };
  for (std::int64_t key = 0; key < end_of(rows); key += kBlock)
    for (std::int64_t m = 0; m < rows; m += kRows) {
      if (end_of(m) <= key) continue;
      const Operand queries{q + (begin + m) * row.stride, row.stride / kPerWord<Element>, 1};
      tile_of<Element>(at_most(kRows, rows - m), end_of(m) - key)(
          queries, room.keys + key / kBlock * room.key_words, words<Element>(E),
          room.scores + m * room.stride + key, room.stride, false);
    }
  Element* weights = room.weights;
  if constexpr (kPerWord<Element> == 1) weights = room.scores;
  for (std::int64_t m = 0; m < rows; m += kRows) {
    const auto count = at_most(kRows, rows - m), end = end_of(m);
    float sums[kRows], top;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto t = begin + m + i, at = (m + i) * room.stride;
      sums[i] = soften(room.scores + at, row.is_causal ? t + 1 : row.length, end, row.scale, top,
                       weights + at);
      log_sums[t] = top + __builtin_logf(sums[i]);
    }
    const Operand shares{weights + m * room.stride, room.stride / kPerWord<Element>, 1};
    for (std::int64_t e = 0; e < E; e += kBlock) {
      tile_of<Element>(count, E - e)(shares, room.values + e / kBlock * room.value_words,
                                     words<Element>(end), room.sums, kBlock, false);
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t c = e; c < at_most(E, e + kBlock); c += 16)
          write(output + (begin + m + i) * row.stride + c, first_lanes(E - c),
                _mm512_mul_ps(_mm512_loadu_ps(room.sums + i * kBlock + c - e),
                              _mm512_set1_ps(1 / sums[i])));
    }
  }
}

template <class Element>
void forward(const FlashRow<Element>& row, Element* output, float* log_sums, float* scratch) {
  const ForwardRoom<Element> room(row, scratch);
  for (std::int64_t head = 0; head < row.num_heads; ++head)
    for (std::int64_t begin = 0; begin < row.length; begin += kForwardRows)
      forward_some(row, room, row.q + head * row.head_size, begin,
                   at_most(kForwardRows, row.length - begin), output + head * row.head_size,
                   log_sums + head * row.log_sum_stride);
}

}  // namespace

std::int64_t flash_forward_scratch(std::int64_t length, std::int64_t head_size) {
  const auto rows = round_up(length, kBlock), width = round_up(head_size, kBlock);
  return 2 * rows * width + 2 * kForwardRows * (rows + 16) + kRows * kBlock;
}

bool has_flash() { return avx512_kernels() != nullptr; }

void flash_forward(const FlashRow<float>& row, float* output, float* log_sums, float* scratch) {
  forward(row, output, log_sums, scratch);
}
void flash_forward(const FlashRow<std::uint16_t>& row, std::uint16_t* output, float* log_sums,
                   float* scratch) {
  forward(row, output, log_sums, scratch);
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
bool has_flash() { return false; }
std::int64_t flash_forward_scratch(std::int64_t, std::int64_t) { return 0; }
void flash_forward(const FlashRow<float>&, float*, float*, float*) {}
void flash_forward(const FlashRow<std::uint16_t>&, std::uint16_t*, float*, float*) {}
}  // namespace llava::nn::cpu

#endif
