// Logits -> the next token. The filters, and the order they are applied in, are those of
// transformers' generate(): repetition penalty, temperature, top-k, top-p, min-p, then the draw.
// Source: huggingface/transformers 5.24.0, generation/logits_process.py.
#pragma once

#include "llava/base/check.h"

#include <cstdint>
#include <span>
#include <vector>

namespace llava::generate {

struct SamplingConfig {
  double temperature = 0;     // 0: greedy, and the filters after it play no part
  std::int64_t top_k = 0;     // keep the k likeliest tokens; 0: all
  double top_p = 1;           // keep the likeliest tokens that together reach this probability
  double min_p = 0;           // keep tokens at least this share as likely as the likeliest
  double repeat_penalty = 1;  // logits of tokens already there are divided (or multiplied) by it

  template <class Field>
  void fields(Field& field) {
    field("temperature", temperature, "0: the likeliest token always (greedy)");
    field("top_k", top_k, "keep the k likeliest tokens; 0: all");
    field("top_p", top_p, "keep the likeliest tokens that together reach this probability");
    field("min_p", min_p, "keep tokens at least this share as likely as the likeliest");
    field("repeat_penalty", repeat_penalty, "weaken tokens that are already in the text; 1: not");
  }

  /// Throws Error(usage) naming the field.
  void validate() const;
};

/// Uniform random numbers, the same on every machine: SplitMix64 (Steele, Lea, Flood, "Fast
/// Splittable Pseudorandom Number Generators", 2014), its state started from a mix of seed and
/// stream, so that rows of a batch draw from streams of their own.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0);

  double uniform();  // in [0, 1), 53 random bits

 private:
  std::uint64_t state_;
};

/// Divides the positive and multiplies the negative logits of the tokens in `seen` by `penalty`,
/// each once; ids outside the vocabulary (picture marks) are passed over.
void penalize(std::span<float> logits, std::span<const std::int64_t> seen, double penalty);

/// Temperature, top-k, top-p and min-p: what is not kept becomes -infinity. Needs temperature > 0.
void filter(std::span<float> logits, const SamplingConfig& config);

/// The id of the largest logit, the lowest such id.  Throws Error(non_finite) if none is a number.
std::int64_t likeliest(std::span<const float> logits);

/// A token drawn with the probabilities softmax(logits).  Throws Error(non_finite) as likeliest().
std::int64_t draw(std::span<const float> logits, Random& random);

/// All of the above: the next token. `logits` [V] are changed; `seen` is the text so far.
std::int64_t sample(std::span<float> logits, std::span<const std::int64_t> seen,
                    const SamplingConfig& config, Random& random);

}  // namespace llava::generate
