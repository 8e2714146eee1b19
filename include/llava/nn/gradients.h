// Where gradients of weights go, and what belongs to training without having any.
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

/// While one lives and `is_on`, what this thread computes without recording gradients belongs to
/// training all the same: a frozen part, or a loss that makes its gradients itself. It may be
/// rounded as training's other products are; inference promises that a row alone gives the bits
/// that it gives among others, and has its own.
class PartOfTraining {
 public:
  explicit PartOfTraining(bool is_on) : is_on_(is_on) { depth_ += is_on_; }
  ~PartOfTraining() { depth_ -= is_on_; }
  PartOfTraining(const PartOfTraining&) = delete;
  PartOfTraining& operator=(const PartOfTraining&) = delete;

  static bool is_on() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
  int is_on_;
};

}  // namespace llava::nn
