#include "llava/base/workers.h"

#include "llava/base/check.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>

namespace llava {
namespace {

TEST(BoundedQueue, KeepsOrderAndCapacity) {
  BoundedQueue<int> queue(2);
  std::atomic<int> pushed{0};
  WorkerGroup workers;
  workers.start([&] {
    for (int i = 0; i < 5; ++i) {
      queue.push(i);
      ++pushed;
    }
    queue.close();
  });
  for (int i = 0; i < 5; ++i) {
    EXPECT_LE(pushed, i + 3);  // two inside, and the one being pushed while this one is popped
    EXPECT_EQ(queue.pop(), i);
  }
  EXPECT_EQ(queue.pop(), std::nullopt);
  workers.join();
}

TEST(BoundedQueue, CloseReleasesAWaitingPush) {
  BoundedQueue<int> queue(1);
  queue.push(1);
  WorkerGroup workers;
  std::atomic<bool> accepted{true};
  workers.start([&] { accepted = queue.push(2); });
  queue.close();
  workers.join();
  EXPECT_FALSE(accepted);
  EXPECT_EQ(queue.pop(), 1);
}

TEST(WorkerGroup, RethrowsTheFirstExceptionOnceAndRunsOnExit) {
  WorkerGroup workers;
  std::atomic<int> exits{0};
  workers.start([] { fail(Fault::data, "sample 7 is broken"); }, [&] { ++exits; });
  workers.start([] {}, [&] { ++exits; });
  EXPECT_THROW(workers.join(), Error);
  EXPECT_EQ(exits, 2);
  workers.join();  // nothing left to throw
}

TEST(BoundedQueue, ManyProducersLoseNothing) {
  BoundedQueue<int> queue(3);
  std::atomic<int> open{4};
  WorkerGroup workers;
  for (int w = 0; w < 4; ++w)
    workers.start(
        [&, w] {
          for (int i = 0; i < 250; ++i) queue.push(w * 250 + i);
        },
        [&] {
          if (--open == 0) queue.close();
        });
  std::set<int> seen;
  while (const auto item = queue.pop()) seen.insert(*item);
  workers.join();
  EXPECT_EQ(seen.size(), 1000u);
}

}  // namespace
}  // namespace llava
