// The randomness of data order: splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
// number generators", OOPSLA 2014), so that an order depends on its seed alone, not on any library.
#pragma once

#include <cstdint>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

namespace llava::data {

/// A well-mixed function of 64 bits.
constexpr std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

class Random {
 public:
  /// `stream` gives independent sequences of one seed (an epoch, for example).
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0)
      : state_(mixed(seed + kStep) + mixed(stream + 2 * kStep)) {}

  std::uint64_t next() { return mixed(state_ += kStep); }

  /// Uniform in [0, bound): the high half of the product, redrawn where it would be biased.
  std::uint64_t below(std::uint64_t bound) {
    while (true) {
      const auto product = static_cast<unsigned __int128>(next()) * bound;
      if (static_cast<std::uint64_t>(product) >= -bound % bound) return product >> 64;
    }
  }

  /// 0 .. count-1 in random order (Fisher and Yates, from the back).
  std::vector<std::int64_t> permutation(std::size_t count) {
    std::vector<std::int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[below(i)]);
    return order;
  }

 private:
  static constexpr std::uint64_t kStep = 0x9E3779B97F4A7C15;
  std::uint64_t state_;
};

/// A hash of bytes that goes on from `hash`; for noticing changes, not for security.
inline std::uint64_t mixed(std::uint64_t hash, std::string_view bytes) {
  hash = mixed(hash ^ bytes.size());
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<std::size_t>(8, bytes.size() - i));
    hash = (hash ^ word) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace llava::data
