// What bench prints beside times.
#include "support/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace llava {
namespace {

using support::llava;
using testing::HasSubstr;

nlohmann::json bench(const std::string& bits) {
  const auto done = llava({"bench", "--shape", "tiny", "--what", "decode", "--repetitions", "1",
                           "--bits", bits, "--json", "--quiet"});
  EXPECT_EQ(done.exit, 0) << done.err;
  return nlohmann::json::parse(done.out);
}

TEST(Bench, LeavesTrainingOutOfFewerBitsByItself) {
  const auto done =
      llava({"bench", "--shape", "tiny", "--repetitions", "1", "--bits", "8", "--json", "--quiet"});
  ASSERT_EQ(done.exit, 0) << done.err;
  for (const auto& row : nlohmann::json::parse(done.out)["results"])
    EXPECT_NE(row["what"], "train");
  EXPECT_EQ(llava({"bench", "--shape", "tiny", "--what", "train", "--bits", "8"}).exit, 2);
}

TEST(Bench, SaysHowFarFewerBitsMoveLogits) {
  EXPECT_FALSE(bench("16").contains("logit_error"));
  const auto eight = bench("8")["logit_error"].get<double>();
  const auto four = bench("4")["logit_error"].get<double>();
  EXPECT_GT(eight, 0);
  EXPECT_LT(eight, 0.1);
  EXPECT_GT(four, eight);
  EXPECT_LT(four, 1);
  EXPECT_THAT(llava({"bench", "--shape", "tiny", "--what", "decode", "--repetitions", "1", "--bits",
                     "8", "--quiet"})
                  .out,
              HasSubstr("logits with 8-bit weights"));
}

}  // namespace
}  // namespace llava
