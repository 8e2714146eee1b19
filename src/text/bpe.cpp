#include "bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace llava::text {

Bpe::Bpe(const std::vector<Merge>& merges) {
  if (merges.empty()) return;
  const std::size_t size = std::bit_ceil(2 * merges.size() + 1);
  table_.resize(size);
  shift_ = 64 - std::countr_zero(size);
  for (const auto& merge : merges) {
    auto& entry = table_[slot(merge.left, merge.right)];
    if (entry.rank == kNone) entry = merge;
  }
}

/// Where the pair is, or the free place where it would be.
std::size_t Bpe::slot(std::uint32_t left, std::uint32_t right) const {
  const std::uint64_t key = std::uint64_t{left} << 32 | right;
  // Fibonacci hashing: the golden ratio of 64 bits.  Source: Knuth, TAOCP 3, 6.4.
  std::size_t at = (key ^ key >> 29) * 0x9E3779B97F4A7C15u >> shift_;
  while (table_[at].rank != kNone && (table_[at].left != left || table_[at].right != right)) {
    at = (at + 1) & (table_.size() - 1);
  }
  return at;
}

const Bpe::Merge* Bpe::find(std::uint32_t left, std::uint32_t right) const {
  if (table_.empty()) return nullptr;
  const auto& entry = table_[slot(left, right)];
  return entry.rank == kNone ? nullptr : &entry;
}

void Bpe::merge(std::vector<Symbol>& symbols, std::size_t from, Scratch& scratch) const {
  const auto count = static_cast<std::int32_t>(symbols.size() - from);
  if (count < 2) return;
  Symbol* const word = symbols.data() + from;
  auto& links = scratch.links;
  auto& queue = scratch.queue;  // a heap of (rank, left place); entries go stale and are skipped
  links.resize(static_cast<std::size_t>(count));
  queue.clear();

  const auto look_right = [&](std::int32_t at) {
    auto& link = links[static_cast<std::size_t>(at)];
    const auto* merge = link.next < 0 ? nullptr : find(word[at].id, word[link.next].id);
    link.rank = merge ? merge->rank : kNone;
    if (!merge) return;
    link.result = merge->result;
    queue.push_back(std::uint64_t{merge->rank} << 32 | static_cast<std::uint32_t>(at));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  for (std::int32_t i = 0; i < count; ++i) {
    links[static_cast<std::size_t>(i)] = {i - 1, i + 1 < count ? i + 1 : -1, kNone, kNone};
    look_right(i);
  }

  while (!queue.empty()) {
    const std::uint64_t best = queue.front();
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    queue.pop_back();
    const auto at = static_cast<std::int32_t>(best & 0xFFFFFFFF);
    auto& link = links[static_cast<std::size_t>(at)];
    if (link.rank != best >> 32) continue;  // the pair has changed since, or is gone
    auto& gone = links[static_cast<std::size_t>(link.next)];
    word[at].id = link.result;
    word[at].end = word[link.next].end;
    gone.rank = kNone;
    link.next = gone.next;
    if (link.next >= 0) links[static_cast<std::size_t>(link.next)].previous = at;
    look_right(at);
    if (link.previous >= 0) look_right(link.previous);
  }

  std::size_t kept = from;
  for (std::int32_t at = 0; at >= 0; at = links[static_cast<std::size_t>(at)].next) {
    symbols[kept++] = word[at];
  }
  symbols.resize(kept);
}

}  // namespace llava::text
