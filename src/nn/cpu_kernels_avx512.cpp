// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share.
#include "cpu_avx512.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

#include "cpu_quantize.h"

namespace llava::nn::cpu {
namespace {

__m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

// ── Products ────────────────────────────────────────────────────────────────────────────────────

template <int M>
void multiply_rows(const std::uint16_t* x, std::int64_t x_stride, const std::uint16_t* block,
                   std::int64_t inputs, float* y, std::int64_t y_stride) {
  __m512 sums[M][kVectors];
  for (int m = 0; m < M; ++m)
    for (auto& sum : sums[m]) sum = _mm512_setzero_ps();
  for (std::int64_t k = 0; k < inputs; k += 2, block += 2 * kBlock) {
    __m512bh weights[kVectors];
    for (int i = 0; i < kVectors; ++i) weights[i] = pairs(load(block + 32 * i));
    for (int m = 0; m < M; ++m) {
      const auto input = pairs(broadcast(x + m * x_stride + k));
      for (int i = 0; i < kVectors; ++i)
        sums[m][i] = _mm512_dpbf16_ps(sums[m][i], weights[i], input);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(y + m * y_stride + 16 * i, sums[m][i]);
}

void multiply_bfloat16(const std::uint16_t* x, std::int64_t x_stride, std::int64_t rows,
                       const std::uint16_t* block, std::int64_t inputs, float* y,
                       std::int64_t y_stride) {
  for (; rows >= 6; rows -= 6, x += 6 * x_stride, y += 6 * y_stride)
    multiply_rows<6>(x, x_stride, block, inputs, y, y_stride);
  switch (rows) {
    case 5: return multiply_rows<5>(x, x_stride, block, inputs, y, y_stride);
    case 4: return multiply_rows<4>(x, x_stride, block, inputs, y, y_stride);
    case 3: return multiply_rows<3>(x, x_stride, block, inputs, y, y_stride);
    case 2: return multiply_rows<2>(x, x_stride, block, inputs, y, y_stride);
    case 1: return multiply_rows<1>(x, x_stride, block, inputs, y, y_stride);
    default: return;
  }
}

// ── Packing ─────────────────────────────────────────────────────────────────────────────────────

/// Sixteen rows of sixteen pairs become sixteen columns.
void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // of four rows: column j of each lane of four columns
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    constexpr int kEven = 0x88, kOdd = 0xdd;  // lanes 0 and 2, or 1 and 3, of each
    const auto a = _mm512_shuffle_i32x4(x[j], x[4 + j], kEven);
    const auto b = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], kEven);
    const auto c = _mm512_shuffle_i32x4(x[j], x[4 + j], kOdd);
    const auto d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], kOdd);
    y[j] = _mm512_shuffle_i32x4(a, b, kEven);
    y[4 + j] = _mm512_shuffle_i32x4(c, d, kEven);
    y[8 + j] = _mm512_shuffle_i32x4(a, b, kOdd);
    y[12 + j] = _mm512_shuffle_i32x4(c, d, kOdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

void pack_rows(const std::uint16_t* weight, std::int64_t stride, std::int64_t rows,
               std::int64_t inputs, std::uint16_t* block) {
  for (std::int64_t k = 0; k < inputs; k += 32)
    for (int i = 0; i < kVectors; ++i) {
      const auto pairs_left = (inputs - k) / 2;
      __m512i x[16];
      for (std::int64_t n = 0; n < 16; ++n) {
        const auto row = 16 * i + n;
        const auto mask = row < rows ? first_lanes(pairs_left) : __mmask16{0};
        x[n] = _mm512_maskz_loadu_epi32(mask, weight + (row < rows ? row * stride + k : 0));
      }
      transpose(x);
      auto* to = block + k / 2 * 2 * kBlock + 32 * i;
      for (std::int64_t pair = 0; pair < 16 && pair < pairs_left; ++pair)
        _mm512_storeu_si512(to + pair * 2 * kBlock, x[pair]);
    }
}

void pack_columns(const std::uint16_t* values, std::int64_t stride, std::int64_t keys,
                  std::int64_t width, std::uint16_t* block) {
  for (std::int64_t key = 0; key < keys; key += 2, block += 2 * kBlock)
    for (int i = 0; i < kVectors; ++i) {
      const auto left = width - 16 * i;
      const auto mask = first_lanes(left);
      const auto* here = values + key * stride + 16 * i;
      const auto even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, here));
      const auto odd = key + 1 < keys
                           ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, here + stride))
                           : _mm512_setzero_si512();
      _mm512_storeu_si512(block + 32 * i, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

// ── Attention ───────────────────────────────────────────────────────────────────────────────────

void store_bfloat16(std::uint16_t* to, __m512 x, __mmask16 mask = 0xffff) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

/// Scores of one query to bfloat16 weights before division by their sum, which is returned. Past
/// `seen` keys, up to `end`, weights are zeros.
float soften(const float* scores, std::int64_t seen, std::int64_t end, float scale,
             std::uint16_t* weights) {
  auto largest = _mm512_set1_ps(-3.0e38F);
  for (std::int64_t key = 0; key < seen; key += 16) {
    const auto mask = first_lanes(seen - key);
    largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_loadu_ps(scores + key));
  }
  const auto factor = _mm512_set1_ps(scale);
  const auto top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(largest)), factor);
  auto sums = _mm512_setzero_ps();
  for (std::int64_t key = 0; key < end; key += 16) {
    const auto left = seen - key;
    const auto mask = first_lanes(left);
    const auto scaled = _mm512_fmsub_ps(_mm512_loadu_ps(scores + key), factor, top);
    const auto weight = _mm512_maskz_mov_ps(mask, exponential(scaled));
    sums = _mm512_add_ps(sums, weight);
    store_bfloat16(weights + key, weight);
  }
  return _mm512_reduce_add_ps(sums);
}

/// `scale` is positive.
void attend(const AttentionHead& head, float* scratch) {
  const auto all_keys = round_up(head.num_keys, kBlock);
  const auto width = round_up(head.head_size, kBlock);
  float* scores = scratch;                           // [queries, all_keys]
  float* outputs = scores + kQueries * all_keys;     // [queries, width]
  auto* weights = reinterpret_cast<std::uint16_t*>(  // [queries, all_keys]
      outputs + kQueries * width);
  for (std::int64_t begin = 0; begin < head.num_queries; begin += kQueries) {
    const auto left = head.num_queries - begin;
    const auto queries = left < kQueries ? left : kQueries;
    const auto last = head.is_causal ? head.first + begin + queries : head.num_keys;
    const auto end = round_up(last < head.num_keys ? last : head.num_keys, kBlock);
    for (std::int64_t key = 0; key < end; key += kBlock)
      multiply_bfloat16(head.q + begin * head.q_stride, head.q_stride, queries,
                        head.keys + key * head.head_size, head.head_size, scores + key, all_keys);
    float sums[kQueries];
    for (std::int64_t t = 0; t < queries; ++t) {
      const auto seen = head.is_causal ? head.first + begin + t + 1 : head.num_keys;
      sums[t] = soften(scores + t * all_keys, seen, end, head.scale, weights + t * all_keys);
    }
    const auto keys_packed = round_up(head.num_keys, 2);
    const auto used = end < keys_packed ? end : keys_packed;
    for (std::int64_t column = 0; column < width; column += kBlock)
      multiply_bfloat16(weights, all_keys, queries, head.values + column * keys_packed, used,
                        outputs + column, width);
    for (std::int64_t t = 0; t < queries; ++t) {
      const auto share = _mm512_set1_ps(1 / sums[t]);
      auto* to = head.output + (begin + t) * head.output_stride;
      for (std::int64_t e = 0; e < head.head_size; e += 16) {
        const auto rest = head.head_size - e;
        store_bfloat16(to + e, _mm512_mul_ps(_mm512_loadu_ps(outputs + t * width + e), share),
                       first_lanes(rest));
      }
    }
  }
}

float dot(const std::uint16_t* a, const std::uint16_t* b, std::int64_t size) {
  auto sum = _mm512_setzero_ps();
  std::int64_t i = 0;
  for (; i + 32 <= size; i += 32)
    sum = _mm512_dpbf16_ps(sum, pairs(load(a + i)), pairs(load(b + i)));
  if (i < size) {
    const auto mask = static_cast<__mmask32>((1u << (size - i)) - 1);
    sum = _mm512_dpbf16_ps(sum, pairs(_mm512_maskz_loadu_epi16(mask, a + i)),
                           pairs(_mm512_maskz_loadu_epi16(mask, b + i)));
  }
  return _mm512_reduce_add_ps(sum);
}

/// Keys are read once a head of the group, values too; they stay in the cache meanwhile.
void attend_one(const OneQuery& query) {
  const auto E = query.head_size, L = query.num_keys;
  for (std::int64_t head = 0; head < query.num_heads; ++head) {
    const auto* q = query.q + head * E;
    float* weights = query.weights;
    for (std::int64_t key = 0; key < L; ++key)
      weights[key] = query.scale * dot(q, query.keys + key * E, E);
    for (std::int64_t key = L; key < round_up(L, 16); ++key) weights[key] = -3.0e38F;
    auto largest = _mm512_loadu_ps(weights);
    for (std::int64_t key = 16; key < L; key += 16)
      largest = _mm512_max_ps(largest, _mm512_loadu_ps(weights + key));
    const auto top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    auto sums = _mm512_setzero_ps();
    for (std::int64_t key = 0; key < L; key += 16) {
      const auto weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(weights + key), top));
      const auto left = L - key;
      const auto mask = first_lanes(left);
      sums = _mm512_mask_add_ps(sums, mask, sums, weight);
      _mm512_storeu_ps(weights + key, weight);
    }
    const auto share = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sums));
    for (std::int64_t e = 0; e < E; e += 64) {
      __m512 outputs[4];
      __mmask16 masks[4];
      for (int i = 0; i < 4; ++i) {
        const auto left = E - e - 16 * i;
        masks[i] = first_lanes(left);
        outputs[i] = _mm512_setzero_ps();
      }
      for (std::int64_t key = 0; key < L; ++key) {
        const auto weight = _mm512_set1_ps(weights[key]);
        for (int i = 0; i < 4; ++i)
          outputs[i] = _mm512_fmadd_ps(weight, widen(query.values + key * E + e + 16 * i, masks[i]),
                                       outputs[i]);
      }
      for (int i = 0; i < 4; ++i)
        store_bfloat16(query.output + head * E + e + 16 * i, _mm512_mul_ps(outputs[i], share),
                       masks[i]);
    }
  }
}

// ── One row ─────────────────────────────────────────────────────────────────────────────────────

void store_rows(const float* y, std::int64_t y_stride, std::int64_t rows, std::int64_t outputs,
                const float* bias, std::uint16_t* to, std::int64_t to_stride) {
  // Row by row: the rows of `to` lie far apart, often in the same set of the first cache.
  for (std::int64_t m = 0; m < rows; ++m)
    for (std::int64_t n = 0; n < outputs; n += 16) {
      const auto mask = first_lanes(outputs - n);
      const auto added = bias ? _mm512_maskz_loadu_ps(mask, bias + n) : _mm512_setzero_ps();
      store_bfloat16(to + m * to_stride + n,
                     _mm512_add_ps(_mm512_loadu_ps(y + m * y_stride + n), added), mask);
    }
}

void widen_row(const std::uint16_t* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    _mm512_mask_storeu_ps(y + i, mask, widen(x + i, mask));
  }
}

void rms_norm(const std::uint16_t* x, const std::uint16_t* weight, std::int64_t width, float eps,
              std::uint16_t* y) {
  auto squares = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto v = widen(x + i, first_lanes(width - i));
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
  const auto scale = _mm512_set1_ps(1 / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps))));
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto mask = first_lanes(width - i);
    const auto normed = rounded(_mm512_mul_ps(widen(x + i, mask), scale));
    store_bfloat16(y + i, _mm512_mul_ps(widen(weight + i, mask), normed), mask);
  }
}

void add(const std::uint16_t* x, const std::uint16_t* other, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    store_bfloat16(y + i, _mm512_add_ps(widen(x + i, mask), widen(other + i, mask)), mask);
  }
}

void swiglu(const std::uint16_t* gate, const std::uint16_t* up, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    const auto g = widen(gate + i, mask);
    const auto silu = rounded(_mm512_mul_ps(g, sigmoid(g)));
    store_bfloat16(y + i, _mm512_mul_ps(silu, widen(up + i, mask)), mask);
  }
}

void quick_gelu(const std::uint16_t* x, std::int64_t n, std::uint16_t* y) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    const auto v = widen(x + i, mask);
    const auto share = rounded(sigmoid(rounded(_mm512_mul_ps(v, _mm512_set1_ps(1.702F)))));
    store_bfloat16(y + i, _mm512_mul_ps(v, share), mask);
  }
}

void rotate(const std::uint16_t* x, const std::uint16_t* cos, const std::uint16_t* sin,
            std::int64_t half, std::uint16_t* y) {
  for (std::int64_t i = 0; i < half; i += 16) {
    const auto mask = first_lanes(half - i);
    const auto a = widen(x + i, mask), b = widen(x + half + i, mask);
    const auto c = widen(cos + i, mask), s = widen(sin + i, mask);
    store_bfloat16(y + i, _mm512_sub_ps(rounded(_mm512_mul_ps(a, c)), rounded(_mm512_mul_ps(b, s))),
                   mask);
    store_bfloat16(y + half + i,
                   _mm512_add_ps(rounded(_mm512_mul_ps(b, c)), rounded(_mm512_mul_ps(a, s))), mask);
  }
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels{"avx512",
                               multiply_bfloat16,
                               multiply_int8_avx512,
                               multiply_int4_avx512,
                               quantize_row_avx512,
                               widen_row,
                               pack_rows,
                               pack_int8,
                               pack_int4,
                               pack_columns,
                               attend,
                               attend_one,
                               store_rows,
                               rms_norm,
                               add,
                               swiglu,
                               quick_gelu,
                               rotate};
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl");
  return has ? &kernels : nullptr;
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace llava::nn::cpu

#endif
