// Work on many numbered things by several threads, results taken in order by the caller.
#pragma once

#include "llava/base/workers.h"

#include <algorithm>
#include <memory>

namespace llava::data {

/// Calls take(i, work(i)) for i = 0 .. count-1 in order; `work` runs on `threads` threads, ahead of
/// `take` by a few hundred, `take` on this one. What the first `work` in order throws, this throws.
template <class Work, class Take>
void in_order(std::int64_t count, std::int64_t threads, const Work& work, const Take& take) {
  using Result = decltype(work(std::int64_t{}));
  constexpr std::int64_t kBlock = 128;
  struct Block {
    std::vector<Result> results;
    std::exception_ptr error;  // of the item after the results
  };
  threads = std::max<std::int64_t>(threads, 1);

  // Worker w does blocks w, w + threads, ...; its queue holds them in order.
  std::vector<std::unique_ptr<BoundedQueue<Block>>> queues;
  for (std::int64_t w = 0; w < threads; ++w)
    queues.push_back(std::make_unique<BoundedQueue<Block>>(2));
  WorkerGroup workers;
  const auto close = [&](void*) {
    for (auto& queue : queues) queue->close();
  };
  const std::unique_ptr<void, decltype(close)> closer(&queues, close);  // also when `take` throws

  for (std::int64_t w = 0; w < threads; ++w) {
    workers.start([&, w] {
      for (auto begin = w * kBlock; begin < count; begin += threads * kBlock) {
        Block block;
        try {
          for (auto i = begin; i < std::min(begin + kBlock, count); ++i)
            block.results.push_back(work(i));
        } catch (...) {  // the caller rethrows it at its place
          block.error = std::current_exception();
        }
        if (!queues[static_cast<std::size_t>(w)]->push(std::move(block))) return;
      }
    });
  }
  for (std::int64_t begin = 0, w = 0; begin < count; begin += kBlock, w = (w + 1) % threads) {
    auto block = *queues[static_cast<std::size_t>(w)]->pop();
    auto i = begin;
    for (auto& result : block.results) take(i++, std::move(result));
    if (block.error) std::rethrow_exception(block.error);
  }
}

}  // namespace llava::data
