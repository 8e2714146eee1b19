#include "llava/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace llava {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string printed(const std::function<void()>& work) {
  testing::internal::CaptureStderr();
  work();
  return testing::internal::GetCapturedStderr();
}

class Log : public testing::Test {
 protected:
  ~Log() override {
    log::set_level(log::Level::info);
    log::set_rank(0, 1);
  }
};

TEST_F(Log, PrintsFromItsLevelUp) {
  const auto all = [] {
    log::debug("one");
    log::info("two ", 2);
    log::warn("three");
  };
  EXPECT_THAT(printed(all), testing::AllOf(Not(HasSubstr("one")), HasSubstr("info two 2"),
                                           HasSubstr("warning three")));
  log::set_level(log::Level::warn);
  EXPECT_THAT(printed(all), testing::AllOf(Not(HasSubstr("two")), HasSubstr("three")));
}

TEST_F(Log, OtherRanksPrintWarningsWithTheirNumber) {
  log::set_rank(3, 4);
  const auto text = printed([] {
    log::info("loaded");
    log::warn("slow disk");
  });
  EXPECT_THAT(text, testing::AllOf(Not(HasSubstr("loaded")), HasSubstr("[rank 3] slow disk")));
}

TEST_F(Log, StatusNeedsATerminal) {
  EXPECT_EQ(printed([] { log::status("37%"); }), "");
}

}  // namespace
}  // namespace llava
