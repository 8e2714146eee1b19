#include "llava/base/workers.h"

#include <utility>

namespace llava {

void WorkerGroup::start(std::function<void()> work, std::function<void()> on_exit) {
  threads_.emplace_back([this, work = std::move(work), on_exit = std::move(on_exit)] {
    try {
      work();
    } catch (...) {  // kept for join(), which rethrows it on the consumer's thread
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
    if (on_exit) on_exit();
  });
}

void WorkerGroup::join() {
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  if (auto error = std::exchange(first_, nullptr)) std::rethrow_exception(error);
}

WorkerGroup::~WorkerGroup() {
  for (auto& thread : threads_) thread.join();
}

}  // namespace llava
