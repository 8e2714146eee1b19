// Byte-pair merging: adjacent symbols become one, best pair first, until no pair is left.
// SentencePiece and Hugging Face tokenizers differ only in where the table of merges comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llava::text {

/// A run of the text that is one symbol.
struct Symbol {
  std::uint32_t id = 0;
  std::uint32_t begin = 0, end = 0;  // bytes of the text
};

class Bpe {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;  // a symbol that never merges; no rank
  static constexpr std::size_t kMaxSymbols = 1u << 31;

  struct Merge {
    std::uint32_t left = kNone, right = kNone;
    std::uint32_t rank = kNone;  // lowest first; of equal ranks the leftmost first
    std::uint32_t result = kNone;
  };

  /// Buffers that one caller may keep between calls of merge().
  struct Scratch {
    struct Link {
      std::int32_t previous, next;
      std::uint32_t rank, result;  // of this symbol and the next
    };
    std::vector<Link> links;
    std::vector<std::uint64_t> queue;
  };

  Bpe() = default;
  /// Of two merges of one pair the first counts.
  explicit Bpe(const std::vector<Merge>& merges);

  /// nullptr when the pair does not merge.
  const Merge* find(std::uint32_t left, std::uint32_t right) const;

  /// Merges symbols[from..] in place. n symbols cost n log n.
  void merge(std::vector<Symbol>& symbols, std::size_t from, Scratch& scratch) const;

 private:
  std::size_t slot(std::uint32_t left, std::uint32_t right) const;

  std::vector<Merge> table_;  // open addressing; a power of two, at most half full
  int shift_ = 64;            // 64 - log2 of the size
};

}  // namespace llava::text
