// Inner loops of cpu_training_rows: one row each, of floats or bfloat16 numbers (as std::uint16_t).
// What an operation of its own would round is rounded here. No torch here.
#pragma once

#include <cstdint>

namespace llava::nn::cpu {

/// Gradients that backward asks for; nullptr where it does not.
template <class Element>
struct NormGradients {
  Element* x;     // [width]
  float* weight;  // [width], added to
};
template <class Element>
struct SwigluGradients {
  Element *gate, *up;  // [n]
};

template <class Element>
struct TrainingRowKernels {
  /// Returns one over the root of the mean square.
  float (*rms_norm)(const Element* x, const Element* weight, std::int64_t width, float eps,
                    Element* y);
  /// `scale`: what rms_norm returned.
  void (*rms_norm_gradients)(const Element* x, const Element* weight, const Element* grad,
                             std::int64_t width, float scale, const NormGradients<Element>& to);
  void (*swiglu)(const Element* gate, const Element* up, std::int64_t n, Element* y);
  void (*swiglu_gradients)(const Element* gate, const Element* up, const Element* grad,
                           std::int64_t n, const SwigluGradients<Element>& to);
  /// x [2 * half] turned by the angles, or back when `sign` is -1; y may be x.
  void (*rotate)(const Element* x, const Element* cos, const Element* sin, std::int64_t half,
                 float sign, Element* y);
  /// The cross-entropy of logits [n] against the token `next`; with `wants_gradients` the logits
  /// become theirs: softmax, less one at `next`.
  float (*cross_entropy)(Element* logits, std::int64_t n, std::int64_t next, bool wants_gradients);
};

/// nullptr where they were not compiled or the CPU lacks what they need.
const TrainingRowKernels<float>* float_training_rows();
const TrainingRowKernels<std::uint16_t>* bfloat16_training_rows();

}  // namespace llava::nn::cpu
