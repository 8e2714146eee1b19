#include "llava/generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace llava::generate {
namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

/// One step of SplitMix64: advances the state and returns its mix.
std::uint64_t split_mix(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15;
  std::uint64_t mixed = state;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
  return mixed ^ (mixed >> 31);
}

/// Room of a thread for one use, kept for its next token.
template <class T, class Use>
std::vector<T>& kept() {
  static thread_local std::vector<T> room;
  return room;
}

/// exp(logit - largest), 0 for what was removed; until the next call.
const std::vector<double>& weights_of(std::span<const float> logits, float largest) {
  auto& weights = kept<double, struct Weights>();
  weights.resize(logits.size());
  std::transform(logits.begin(), logits.end(), weights.begin(),
                 [&](float logit) { return std::exp(static_cast<double>(logit) - largest); });
  return weights;
}

/// Tokens as likely as the k-th likeliest stay, ties among them.
void keep_top_k(std::span<float> logits, std::int64_t k) {
  if (k <= 0 || k >= static_cast<std::int64_t>(logits.size())) return;
  auto& order = kept<float, struct TopK>();
  order.assign(logits.begin(), logits.end());
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
  const float least = order[static_cast<std::size_t>(k - 1)];
  for (float& logit : logits)
    if (logit < least) logit = kRemoved;
}

/// Removes the unlikeliest tokens while they add up to at most 1 - p; one always stays.
void keep_top_p(std::span<float> logits, double p) {
  if (p >= 1) return;
  auto& order = kept<std::size_t, struct TopP>();  // what is left, unlikeliest first
  order.clear();
  order.reserve(logits.size());
  for (std::size_t id = 0; id < logits.size(); ++id)
    if (logits[id] != kRemoved) order.push_back(id);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a < b);
  });
  const auto& weights = weights_of(logits, logits[order.back()]);
  double total = 0, sum = 0;
  for (const std::size_t id : order) total += weights[id];
  order.pop_back();
  for (const std::size_t id : order) {
    sum += weights[id];
    if (sum / total > 1 - p) break;
    logits[id] = kRemoved;
  }
}

void keep_min_p(std::span<float> logits, double share) {
  if (share <= 0) return;
  const double least = *std::max_element(logits.begin(), logits.end()) + std::log(share);
  for (float& logit : logits)
    if (logit < least) logit = kRemoved;
}

}  // namespace

void SamplingConfig::validate() const {
  expect(temperature >= 0 && std::isfinite(temperature), Fault::usage,
         "temperature must be 0 (greedy) or positive, got ", temperature);
  expect(top_k >= 0, Fault::usage, "top_k must be 0 (all tokens) or positive, got ", top_k);
  expect(top_p > 0 && top_p <= 1, Fault::usage, "top_p must be in (0, 1], got ", top_p);
  expect(min_p >= 0 && min_p <= 1, Fault::usage, "min_p must be in [0, 1], got ", min_p);
  expect(repeat_penalty > 0 && std::isfinite(repeat_penalty), Fault::usage,
         "repeat_penalty must be positive, got ", repeat_penalty);
}

Random::Random(std::uint64_t seed, std::uint64_t stream) {
  state_ = split_mix(seed) + stream;
  state_ = split_mix(state_);
}

double Random::uniform() { return static_cast<double>(split_mix(state_) >> 11) * 0x1p-53; }

void penalize(std::span<float> logits, std::span<const std::int64_t> seen, double penalty) {
  if (penalty == 1) return;
  auto& ids = kept<std::int64_t, struct Seen>();
  if (ids.capacity() < seen.size()) ids.reserve(2 * seen.size());
  ids.assign(seen.begin(), seen.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= static_cast<std::int64_t>(logits.size())) continue;
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = static_cast<float>(logit < 0 ? logit * penalty : logit / penalty);
  }
}

void filter(std::span<float> logits, const SamplingConfig& config) {
  for (float& logit : logits) logit /= static_cast<float>(config.temperature);
  keep_top_k(logits, config.top_k);
  keep_top_p(logits, config.top_p);
  keep_min_p(logits, config.min_p);
}

std::int64_t likeliest(std::span<const float> logits) {
  std::size_t best = 0;
  bool is_number = !logits.empty();
  for (std::size_t id = 0; id < logits.size(); ++id) {
    is_number = is_number && !std::isnan(logits[id]);
    if (logits[id] > logits[best]) best = id;
  }
  expect(is_number && std::isfinite(logits[best]), Fault::non_finite,
         "the model's logits are not finite numbers; are the weights whole, and is the dtype wide "
         "enough for them (--dtype float32)?");
  return static_cast<std::int64_t>(best);
}

std::int64_t draw(std::span<const float> logits, Random& random) {
  const std::int64_t best = likeliest(logits);
  const auto& weights = weights_of(logits, logits[static_cast<std::size_t>(best)]);
  double total = 0;
  for (const double weight : weights) total += weight;
  double left = random.uniform() * total;
  for (std::size_t id = 0; id < weights.size(); ++id) {
    left -= weights[id];
    if (left < 0) return static_cast<std::int64_t>(id);
  }
  return best;  // rounding left nothing to fall into
}

std::int64_t sample(std::span<float> logits, std::span<const std::int64_t> seen,
                    const SamplingConfig& config, Random& random) {
  penalize(logits, seen, config.repeat_penalty);
  if (config.temperature == 0) return likeliest(logits);
  likeliest(logits);  // the filters compare numbers
  filter(logits, config);
  return draw(logits, random);
}

}  // namespace llava::generate
