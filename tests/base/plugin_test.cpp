#include "llava/base/plugin.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(Plugin, SaysWhatIsMissingAndTheCure) {
  const auto state = open_plugin();
  const auto message =
      support::error_of(Fault::usage, [] { plugin_symbol("no_such_function_in_any_plugin"); });
  if (state.open) {
    EXPECT_THAT(message, testing::HasSubstr("build program and plugin together"));
  } else {
    EXPECT_FALSE(state.reason.empty());
    EXPECT_THAT(message, testing::HasSubstr("scripts/setup.sh --cuda"));
  }
}

}  // namespace
}  // namespace llava
