// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share. What lies above the diagonal is left out in steps of 6 queries and 16
// keys.
// With P the weights, dP = dO V^T and D = sum(dO * O) of a query: dS = P * (dP - D), dV = P^T dO,
// dQ = dS K and dK = dS^T Q, the last two times the scale.
#include "cpu_flash_kernels.h"

#if defined(__AVX512BF16__)

#include "cpu_flash_tiles.h"

namespace llava::nn::cpu {
namespace {

template <class Element>
struct BackwardRoom {
  BackwardRoom(const FlashRow<Element>& row, float* scratch)
      : row_words(words<Element>(row.length) * kBlock), width(round_up(row.head_size, kBlock)) {
    const auto rows = round_up(row.length, kBlock);
    queries = scratch;
    grads = queries + rows * width;
    grad_q = grads + rows * width;
    grad_k = grad_q + rows * width;
    grad_v = grad_k + rows * width;
    deltas = grad_v + rows * width;
    key_panel = deltas + rows;
    value_panel = key_panel + width * kBlock;
    keys = value_panel + width * kBlock;
    scores = keys + width * kBlock;
    slopes = scores + kBlock * kBlock;
    weight_pairs = reinterpret_cast<std::uint16_t*>(slopes + kBlock * kBlock);
    slope_pairs = weight_pairs + kBlock * kBlock;
    slope_rows = slope_pairs + kBlock * kBlock;
  }

  std::int64_t row_words;                     // of 64 columns of `queries` and `grads`
  std::int64_t width;                         // E in whole blocks
  float *queries, *grads;                     // q and dO of the head: panels of 64 columns
  float *grad_q, *grad_k, *grad_v;            // sums [T][width]
  float* deltas;                              // D [T]
  float *key_panel, *value_panel;             // of 64 keys: [E][64]
  float* keys;                                // the same keys: panels of 64 columns
  float *scores, *slopes;                     // [64 queries][64 keys]: S, then P; dP, then dS
  std::uint16_t *weight_pairs, *slope_pairs;  // P, dS as [32][64 keys] pairs of queries
  std::uint16_t* slope_rows;                  // dS [64 queries][64 keys]
};

/// Some queries against some keys, at most 64 of each.
struct Block {
  std::int64_t query, queries, key, keys;
  bool is_diagonal;

  /// Keys that one of the queries m ... sees.
  std::int64_t seen_by(std::int64_t m) const {
    return is_diagonal ? at_most(keys, at_most(queries, m + kRows)) : keys;
  }
};

/// S and dP.
template <class Element>
void score(const FlashRow<Element>& row, const BackwardRoom<Element>& room, const Block& block,
           const Element* q, const Element* grad) {
  const auto steps = words<Element>(row.head_size), stride = row.stride / kPerWord<Element>;
  for (std::int64_t m = 0; m < block.queries; m += kRows) {
    const auto multiply = tile_of<Element>(at_most(kRows, block.queries - m), block.seen_by(m));
    const auto first = (block.query + m) * row.stride;
    multiply({q + first, stride, 1}, room.key_panel, steps, room.scores + m * kBlock, kBlock,
             false);
    multiply({grad + first, stride, 1}, room.value_panel, steps, room.slopes + m * kBlock, kBlock,
             false);
  }
}

struct WeightAndSlope {
  __m512 weight, slope;
};

/// P and dS of query m and 16 keys from `key` on; zeros for keys that it does not see.
template <class Element>
WeightAndSlope weigh(const FlashRow<Element>& row, const BackwardRoom<Element>& room,
                     const Block& block, const float* log_sums, std::int64_t m, std::int64_t key) {
  const auto seen = m >= block.queries ? 0 : block.is_diagonal ? m + 1 : block.keys;
  const auto mask = first_lanes(at_most(seen, block.keys) - key);
  if (mask == 0) return {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const auto log_sum = _mm512_set1_ps(log_sums[block.query + m]);
  const auto delta = _mm512_set1_ps(room.deltas[block.query + m]);
  const auto at = m * kBlock + key;
  const auto scaled =
      _mm512_fmsub_ps(_mm512_loadu_ps(room.scores + at), _mm512_set1_ps(row.scale), log_sum);
  const auto weight = _mm512_maskz_mov_ps(mask, exponential(scaled));
  const auto slope =
      _mm512_maskz_mul_ps(mask, weight, _mm512_sub_ps(_mm512_loadu_ps(room.slopes + at), delta));
  return {weight, slope};
}

/// 16 pairs of bfloat16 numbers, from `low` and `high`.
__m512i paired(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}
__m256i narrow(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

/// P and dS from S and dP, in the forms that the products take.
void weigh_all(const FlashRow<float>& row, const BackwardRoom<float>& room, const Block& block,
               const float* log_sums) {
  for (std::int64_t m = 0; m < block.queries; ++m)
    for (std::int64_t key = 0; key < kBlock; key += 16) {
      const auto [weight, slope] = weigh(row, room, block, log_sums, m, key);
      _mm512_storeu_ps(room.scores + m * kBlock + key, weight);
      _mm512_storeu_ps(room.slopes + m * kBlock + key, slope);
    }
}
void weigh_all(const FlashRow<std::uint16_t>& row, const BackwardRoom<std::uint16_t>& room,
               const Block& block, const float* log_sums) {
  for (std::int64_t m = 0; m < block.queries; m += 2)
    for (std::int64_t key = 0; key < kBlock; key += 16) {
      const auto a = weigh(row, room, block, log_sums, m, key);
      const auto b = weigh(row, room, block, log_sums, m + 1, key);
      const auto slope_a = narrow(a.slope), slope_b = narrow(b.slope);
      _mm512_storeu_si512(room.weight_pairs + m * kBlock + 2 * key,
                          paired(narrow(a.weight), narrow(b.weight)));
      _mm512_storeu_si512(room.slope_pairs + m * kBlock + 2 * key, paired(slope_a, slope_b));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.slope_rows + m * kBlock + key), slope_a);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(room.slope_rows + (m + 1) * kBlock + key),
                          slope_b);
    }
}

/// dQ += dS K.
template <class Element>
void add_to_queries(const FlashRow<Element>& row, const BackwardRoom<Element>& room,
                    const Block& block) {
  const void* slopes = room.slope_rows;
  if constexpr (kPerWord<Element> == 1) slopes = room.slopes;
  const auto stride = kBlock / kPerWord<Element>;
  for (std::int64_t m = 0; m < block.queries; m += kRows)
    for (std::int64_t e = 0; e < row.head_size; e += kBlock) {
      const Operand left{static_cast<const char*>(slopes) + 4 * m * stride, stride, 1};
      tile_of<Element>(at_most(kRows, block.queries - m), row.head_size - e)(
          left, room.keys + e * stride, words<Element>(block.seen_by(m)),
          room.grad_q + (block.query + m) * room.width + e, room.width, block.key > 0);
    }
}

/// sums [keys, E] += left^T right, over the block's queries. left: P or dS; right: dO or q.
template <class Element>
void add_to_keys(const FlashRow<Element>& row, const BackwardRoom<Element>& room,
                 const Block& block, const void* left, const float* right, bool adds, float* sums) {
  for (std::int64_t key = 0; key < block.keys; key += kRows) {
    const auto first = block.is_diagonal ? key / 2 * 2 / kPerWord<Element> : 0;  // that sees one
    const Operand turned{static_cast<const char*>(left) + 4 * (first * kBlock + key), 1, kBlock};
    const auto from = words<Element>(block.query) + first;
    for (std::int64_t e = 0; e < row.head_size; e += kBlock)
      tile_of<Element>(at_most(kRows, block.keys - key), row.head_size - e)(
          turned, right + e / kBlock * room.row_words + from * kBlock,
          words<Element>(block.queries) - first, sums + (block.key + key) * room.width + e,
          room.width, adds);
  }
}

/// A block's keys against all queries of a head that see them.
template <class Element>
void backward_block(const FlashRow<Element>& row, const BackwardRoom<Element>& room,
                    const FlashGradients<Element>& of, std::int64_t head, Block block) {
  const auto offset = head * row.head_size;
  const auto first = row.is_causal ? block.key : 0;
  const void *weights = room.weight_pairs, *slopes = room.slope_pairs;
  if constexpr (kPerWord<Element> == 1) weights = room.scores, slopes = room.slopes;
  for (block.query = first; block.query < row.length; block.query += kBlock) {
    block.queries = at_most(kBlock, row.length - block.query);
    block.is_diagonal = row.is_causal && block.query == block.key;
    score(row, room, block, row.q + offset, of.grad + offset);
    weigh_all(row, room, block, of.log_sums + head * row.log_sum_stride);
    const bool adds = head > 0 || block.query > first;
    add_to_queries(row, room, block);
    add_to_keys(row, room, block, weights, room.grads, adds, room.grad_v);
    add_to_keys(row, room, block, slopes, room.queries, adds, room.grad_k);
  }
}

/// Rows [T][width] of sums times a factor.
template <class Element>
void store(const FlashRow<Element>& row, const float* sums, std::int64_t width, float scale,
           std::int64_t stride, Element* to) {
  const auto factor = _mm512_set1_ps(scale);
  for (std::int64_t t = 0; t < row.length; ++t)
    for (std::int64_t e = 0; e < row.head_size; e += 16)
      write(to + t * stride + e, first_lanes(row.head_size - e),
            _mm512_mul_ps(_mm512_loadu_ps(sums + t * width + e), factor));
}

/// The head's queries and gradients in panels, and D.
template <class Element>
void prepare(const FlashRow<Element>& row, const BackwardRoom<Element>& room, const Element* q,
             const Element* grad, const Element* output) {
  for (std::int64_t e = 0; e < row.head_size; e += kBlock) {
    const auto columns = at_most(kBlock, row.head_size - e);
    const auto at = e / kBlock * room.row_words;
    products<Element>().pack_columns(q + e, row.stride, row.length, columns,
                                     reinterpret_cast<Element*>(room.queries + at));
    products<Element>().pack_columns(grad + e, row.stride, row.length, columns,
                                     reinterpret_cast<Element*>(room.grads + at));
  }
  for (std::int64_t t = 0; t < row.length; ++t) {
    auto sum = _mm512_setzero_ps();
    for (std::int64_t e = 0; e < row.head_size; e += 16) {
      const auto mask = first_lanes(row.head_size - e);
      sum = _mm512_fmadd_ps(read(grad + t * row.stride + e, mask),
                            read(output + t * row.stride + e, mask), sum);
    }
    room.deltas[t] = _mm512_reduce_add_ps(sum);
  }
}

template <class Element>
void backward(const FlashRow<Element>& row, const FlashGradients<Element>& of, float* scratch) {
  const BackwardRoom<Element> room(row, scratch);
  const auto& own = products<Element>();
  const auto E = row.head_size, stride = row.kv_stride;
  for (std::int64_t head = 0; head < row.num_heads; ++head) {
    prepare(row, room, row.q + head * E, of.grad + head * E, of.output + head * E);
    for (std::int64_t key = 0; key < row.length; key += kBlock) {
      const auto keys = at_most(kBlock, row.length - key);
      const auto *k = row.k + key * stride, *v = row.v + key * stride;
      own.pack_rows(k, stride, keys, E, reinterpret_cast<Element*>(room.key_panel));
      own.pack_rows(v, stride, keys, E, reinterpret_cast<Element*>(room.value_panel));
      for (std::int64_t e = 0; e < E; e += kBlock)
        own.pack_columns(k + e, stride, keys, at_most(kBlock, E - e),
                         reinterpret_cast<Element*>(room.keys + e * kBlock / kPerWord<Element>));
      backward_block(row, room, of, head, {0, 0, key, keys, false});
    }
    store(row, room.grad_q, room.width, row.scale, row.stride, of.grad_q + head * E);
  }
  store(row, room.grad_k, room.width, row.scale, stride, of.grad_k);
  store(row, room.grad_v, room.width, 1.0F, stride, of.grad_v);
}

}  // namespace

std::int64_t flash_backward_scratch(std::int64_t length, std::int64_t head_size) {
  const auto rows = round_up(length, kBlock), width = round_up(head_size, kBlock);
  return 5 * rows * width + rows + 3 * width * kBlock + 4 * kBlock * kBlock;
}

void flash_backward(const FlashRow<float>& row, const FlashGradients<float>& gradients,
                    float* scratch) {
  backward(row, gradients, scratch);
}
void flash_backward(const FlashRow<std::uint16_t>& row,
                    const FlashGradients<std::uint16_t>& gradients, float* scratch) {
  backward(row, gradients, scratch);
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
std::int64_t flash_backward_scratch(std::int64_t, std::int64_t) { return 0; }
void flash_backward(const FlashRow<float>&, const FlashGradients<float>&, float*) {}
void flash_backward(const FlashRow<std::uint16_t>&, const FlashGradients<std::uint16_t>&, float*) {}
}  // namespace llava::nn::cpu

#endif
