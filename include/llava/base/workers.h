// A bounded queue and a group of threads that stop cleanly: what a worker throws reaches the
// consumer, and leaving scope never hangs.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace llava {

/// First in, first out, at most `capacity` items. Safe for any number of threads.
template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(std::size_t capacity) : capacity_(capacity) {}

  /// Waits for room. Returns false, dropping the item, when the queue is closed.
  bool push(T item) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || items_.size() < capacity_; });
    if (closed_) return false;
    items_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  /// Waits for an item. Returns nothing when the queue is closed and empty.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !items_.empty(); });
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    changed_.notify_all();
    return item;
  }

  /// No more pushes; what is inside can still be popped.
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> items_;
  bool closed_ = false;
};

/// Threads that run one function each. The first exception is kept for join().
class WorkerGroup {
 public:
  WorkerGroup() = default;
  ~WorkerGroup();  // waits for the threads; close their queues first
  WorkerGroup(const WorkerGroup&) = delete;
  WorkerGroup& operator=(const WorkerGroup&) = delete;

  /// Starts a thread. `on_exit` runs on it afterwards, whether or not `work` threw.
  void start(std::function<void()> work, std::function<void()> on_exit = {});

  /// Waits for all threads, then rethrows the first exception, once.
  void join();

 private:
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::exception_ptr first_;
};

}  // namespace llava
