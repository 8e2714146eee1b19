// Where gradients of weights go.
#pragma once

namespace llava::nn {

/// While one lives, backward on this thread adds a Linear's weight gradient straight to the one
/// that the weight has from earlier micro-steps, instead of making a tensor that is added
/// afterwards. Weights that somebody watches (post-accumulate hooks) are left to autograd.
class AddsGradientsInPlace {
 public:
  AddsGradientsInPlace() { ++depth_; }
  ~AddsGradientsInPlace() { --depth_; }
  AddsGradientsInPlace(const AddsGradientsInPlace&) = delete;
  AddsGradientsInPlace& operator=(const AddsGradientsInPlace&) = delete;

  static bool is_on() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
};

}  // namespace llava::nn
