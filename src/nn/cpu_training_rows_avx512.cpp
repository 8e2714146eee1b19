// Compiled with AVX-512 switched on (see CMakeLists.txt), so nothing here may be an inline function
// that other files share.
#include "cpu_kernels.h"
#include "cpu_training_row_kernels.h"

#if defined(__AVX512BF16__)

#include "cpu_vectors.h"

namespace llava::nn::cpu {
namespace {

/// A result as its type holds it.
template <class Element>
__m512 held(__m512 x) {
  if constexpr (sizeof(Element) == 4) return x;
  return rounded(x);
}

// ── RMS norm ────────────────────────────────────────────────────────────────────────────────────

template <class Element>
float rms_norm(const Element* x, const Element* weight, std::int64_t width, float eps, Element* y) {
  auto squares = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto v = read(x + i, first_lanes(width - i));
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
  const float scale = 1 / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
  const auto scales = _mm512_set1_ps(scale);
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto mask = first_lanes(width - i);
    const auto normed = held<Element>(_mm512_mul_ps(read(x + i, mask), scales));
    write(y + i, mask, _mm512_mul_ps(read(weight + i, mask), normed));
  }
  return scale;
}

// With n = x * scale: dx = scale * (dn - n * mean(dn * n)), dn = dy * weight; dweight = sum of dy
// n.
template <class Element>
void rms_norm_gradients(const Element* x, const Element* weight, const Element* grad,
                        std::int64_t width, float scale, const NormGradients<Element>& to) {
  const auto scales = _mm512_set1_ps(scale);
  auto products = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto mask = first_lanes(width - i);
    const auto normed = _mm512_mul_ps(read(x + i, mask), scales), dy = read(grad + i, mask);
    products = _mm512_fmadd_ps(_mm512_mul_ps(dy, read(weight + i, mask)), normed, products);
    if (!to.weight) continue;
    const auto sum = read(to.weight + i, mask);
    write(to.weight + i, mask, _mm512_fmadd_ps(dy, held<Element>(normed), sum));
  }
  if (!to.x) return;
  const auto mean = _mm512_set1_ps(_mm512_reduce_add_ps(products) / static_cast<float>(width));
  for (std::int64_t i = 0; i < width; i += 16) {
    const auto mask = first_lanes(width - i);
    const auto normed = _mm512_mul_ps(read(x + i, mask), scales);
    const auto grad_normed = _mm512_mul_ps(read(grad + i, mask), read(weight + i, mask));
    write(to.x + i, mask, _mm512_mul_ps(_mm512_fnmadd_ps(normed, mean, grad_normed), scales));
  }
}

// ── SwiGLU ──────────────────────────────────────────────────────────────────────────────────────

template <class Element>
void swiglu(const Element* gate, const Element* up, std::int64_t n, Element* y) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    const auto g = read(gate + i, mask);
    const auto silu = held<Element>(_mm512_mul_ps(g, sigmoid(g)));
    write(y + i, mask, _mm512_mul_ps(silu, read(up + i, mask)));
  }
}

// With s = sigmoid(gate): d silu = s * (1 + gate * (1 - s)).
template <class Element>
void swiglu_gradients(const Element* gate, const Element* up, const Element* grad, std::int64_t n,
                      const SwigluGradients<Element>& to) {
  const auto one = _mm512_set1_ps(1);
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    const auto g = read(gate + i, mask), dy = read(grad + i, mask), s = sigmoid(g);
    if (to.gate) {
      const auto slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one);
      const auto grad_silu = held<Element>(_mm512_mul_ps(dy, read(up + i, mask)));
      write(to.gate + i, mask, _mm512_mul_ps(grad_silu, _mm512_mul_ps(s, slope)));
    }
    if (to.up) write(to.up + i, mask, _mm512_mul_ps(held<Element>(_mm512_mul_ps(g, s)), dy));
  }
}

// ── Rotary positions ────────────────────────────────────────────────────────────────────────────

template <class Element>
void rotate(const Element* x, const Element* cos, const Element* sin, std::int64_t half, float sign,
            Element* y) {
  const auto signs = _mm512_set1_ps(sign);
  for (std::int64_t i = 0; i < half; i += 16) {
    const auto mask = first_lanes(half - i);
    const auto a = read(x + i, mask), b = read(x + half + i, mask);
    const auto c = read(cos + i, mask), s = _mm512_mul_ps(read(sin + i, mask), signs);
    const auto ac = held<Element>(_mm512_mul_ps(a, c)), bs = held<Element>(_mm512_mul_ps(b, s));
    const auto bc = held<Element>(_mm512_mul_ps(b, c)), as = held<Element>(_mm512_mul_ps(a, s));
    write(y + i, mask, _mm512_sub_ps(ac, bs));
    write(y + half + i, mask, _mm512_add_ps(bc, as));
  }
}

// ── Loss ────────────────────────────────────────────────────────────────────────────────────────

float as_float(float x) { return x; }
float as_float(std::uint16_t x) {
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(x << 16)));
}

template <class Element>
float cross_entropy(Element* logits, std::int64_t n, std::int64_t next, bool wants_gradients) {
  auto largest = _mm512_set1_ps(-__builtin_inff());
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    largest = _mm512_mask_max_ps(largest, mask, largest, read(logits + i, mask));
  }
  const float top = _mm512_reduce_max_ps(largest);
  const auto tops = _mm512_set1_ps(top);
  auto sums = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    const auto power = exponential(_mm512_sub_ps(read(logits + i, mask), tops));
    sums = _mm512_mask_add_ps(sums, mask, sums, power);
  }
  const float log_sum = top + __builtin_logf(_mm512_reduce_add_ps(sums));
  const float logit = as_float(logits[next]);
  if (!wants_gradients) return log_sum - logit;
  const auto log_sums = _mm512_set1_ps(log_sum);
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto mask = first_lanes(n - i);
    auto share = exponential(_mm512_sub_ps(read(logits + i, mask), log_sums));
    if (next >= i && next < i + 16)
      share = _mm512_mask_sub_ps(share, static_cast<__mmask16>(1 << (next - i)), share,
                                 _mm512_set1_ps(1));
    write(logits + i, mask, share);
  }
  return log_sum - logit;
}

template <class Element>
constexpr TrainingRowKernels<Element> kKernels{rms_norm<Element>, rms_norm_gradients<Element>,
                                               swiglu<Element>,   swiglu_gradients<Element>,
                                               rotate<Element>,   cross_entropy<Element>};

}  // namespace

const TrainingRowKernels<float>* float_training_rows() {
  return avx512_kernels() ? &kKernels<float> : nullptr;
}
const TrainingRowKernels<std::uint16_t>* bfloat16_training_rows() {
  return avx512_kernels() ? &kKernels<std::uint16_t> : nullptr;
}

}  // namespace llava::nn::cpu

#else

namespace llava::nn::cpu {
const TrainingRowKernels<float>* float_training_rows() { return nullptr; }
const TrainingRowKernels<std::uint16_t>* bfloat16_training_rows() { return nullptr; }
}  // namespace llava::nn::cpu

#endif
