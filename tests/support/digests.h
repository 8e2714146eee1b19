// CRC-32 (zlib's) and SHA-256, for comparing with recorded digests.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace llava::support {

template <class Bytes>
std::string_view bytes_of(const Bytes& container) {
  return {reinterpret_cast<const char*>(container.data()),
          container.size() * sizeof(*container.data())};
}

inline std::uint32_t crc32(std::string_view bytes) {
  static constexpr auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      table[i] = i;
      for (int bit = 0; bit < 8; ++bit)
        table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0u);
    }
    return table;
  }();
  std::uint32_t crc = ~0u;
  for (const char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<std::uint8_t>(c)) & 255];
  return ~crc;
}

/// Lower-case hex. Source: NIST FIPS 180-4.
inline std::string sha256(std::string text) {
  const auto is_prime = [](std::uint32_t n) {
    for (std::uint32_t d = 2; d * d <= n; ++d)
      if (n % d == 0) return false;
    return n > 1;
  };
  // The constants are the first 32 bits of the fractions of roots of primes: exact in integers.
  const auto root_bits = [](std::uint32_t n, int power) {  // fraction of n^(1/power) * 2^32
    unsigned __int128 low = 0, high = static_cast<unsigned __int128>(1) << 38;
    while (high - low > 1) {
      const unsigned __int128 x = (low + high) / 2;
      // x^power <= n * 2^(32 * power), without overflow: compare in steps
      const unsigned __int128 square = x * x;
      const bool below = power == 2 ? square <= (static_cast<unsigned __int128>(n) << 64)
                                    : square <= (static_cast<unsigned __int128>(n) << 96) / x;
      (below ? low : high) = x;
    }
    return static_cast<std::uint32_t>(low);
  };
  std::array<std::uint32_t, 64> k{};
  std::array<std::uint32_t, 8> h{};
  for (std::uint32_t n = 2, i = 0; i < 64; ++n)
    if (is_prime(n)) {
      if (i < 8) h[i] = root_bits(n, 2);
      k[i++] = root_bits(n, 3);
    }

  const std::uint64_t bits = text.size() * 8;
  text += '\x80';
  while (text.size() % 64 != 56) text += '\0';
  for (int i = 7; i >= 0; --i) text += static_cast<char>(bits >> (8 * i));
  for (std::size_t at = 0; at < text.size(); at += 64) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 64; ++i)
      w[i / 4] = w[i / 4] << 8 | static_cast<std::uint8_t>(text[at + i]);
    for (std::size_t i = 16; i < 64; ++i) {
      const auto a = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
      const auto b = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    auto s = h;
    for (std::size_t i = 0; i < 64; ++i) {
      const auto e = std::rotr(s[4], 6) ^ std::rotr(s[4], 11) ^ std::rotr(s[4], 25);
      const auto t1 = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      const auto a = std::rotr(s[0], 2) ^ std::rotr(s[0], 13) ^ std::rotr(s[0], 22);
      const auto t2 = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
    }
    for (std::size_t i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::string hex;
  for (const auto word : h) {
    char part[9];
    std::snprintf(part, sizeof part, "%08x", word);
    hex += part;
  }
  return hex;
}

}  // namespace llava::support
