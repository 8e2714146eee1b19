#include "llava/generate/sampling.h"

#include "llava/base/config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace llava::generate {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Json golden(const std::string& name) { return read_json(std::string(LLAVA_GOLDEN) + "/" + name); }

/// What `call` throws, as text; "" when it does not.
template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Sampling, FiltersEqualTransformersInOrderAndNumbers) {
  int cases = 0;
  for (const auto& entry : golden("sampling.json")) {
    const auto config = read_config<SamplingConfig>(entry["config"], "golden");
    auto logits = entry["logits"].get<std::vector<float>>();
    penalize(logits, entry["seen"].get<std::vector<std::int64_t>>(), config.repeat_penalty);
    filter(logits, config);
    for (std::size_t id = 0; id < logits.size(); ++id) {
      const auto& want = entry["filtered"][id];
      if (want.is_null()) {
        EXPECT_EQ(logits[id], -kInfinity) << "case " << cases << " id " << id;
      } else {  // one rounding of float32
        EXPECT_NEAR(logits[id], want.get<float>(), 2e-6 * std::abs(want.get<float>()))
            << "case " << cases << " id " << id;
      }
    }
    ++cases;
  }
  EXPECT_EQ(cases, 27);
}

TEST(Sampling, GreedyTakesTheLowestIdOfTheLargest) {
  std::vector<float> logits{1, 5, -2, 5};
  EXPECT_EQ(likeliest(logits), 1);
  Random random(0);
  EXPECT_EQ(sample(logits, {}, SamplingConfig{}, random), 1);
}

TEST(Sampling, GreedyHeedsThePenalty) {
  std::vector<float> logits{4, 5, -1};
  Random random(0);
  const std::vector<std::int64_t> seen{1, 1, -200, 2, 99};  // twice counts once; marks are no ids
  EXPECT_EQ(sample(logits, seen, SamplingConfig{.repeat_penalty = 2}, random), 0);
  EXPECT_THAT(logits, testing::ElementsAre(4, 2.5, -2));
}

TEST(Random, IsRepeatableUniformAndStreamsDiffer) {
  Random a(7), b(7), c(8), d(7, 1);
  double sum = 0;
  int same_as_c = 0, same_as_d = 0;
  for (int i = 0; i < 10000; ++i) {
    const double x = a.uniform();
    ASSERT_GE(x, 0);
    ASSERT_LT(x, 1);
    EXPECT_EQ(x, b.uniform());
    same_as_c += x == c.uniform();
    same_as_d += x == d.uniform();
    sum += x;
  }
  EXPECT_EQ(same_as_c, 0);
  EXPECT_EQ(same_as_d, 0);
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);  // standard error 0.003
}

// The mix written out again; its first two outputs from state 0 are those that Vigna's splitmix64.c
// prints.
TEST(Random, IsTheSameOnEveryMachine) {
  const auto mix = [](std::uint64_t& s) {
    s += 0x9E3779B97F4A7C15;
    std::uint64_t z = s;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  };
  std::uint64_t zero = 0;
  ASSERT_EQ(mix(zero), 0xE220A8397B1DCDAFu);
  ASSERT_EQ(mix(zero), 0x6E789E6AA1B965F4u);
  std::uint64_t state = 42;
  state = mix(state);
  state = mix(state);
  Random random(42);
  EXPECT_EQ(random.uniform(), static_cast<double>(mix(state) >> 11) / 9007199254740992.0);
}

TEST(Sampling, DrawsFollowTheProbabilities) {
  const std::vector<float> logits{std::log(0.5f), -kInfinity, std::log(0.3f), std::log(0.2f)};
  Random random(3);
  std::vector<int> counts(4);
  for (int i = 0; i < 20000; ++i) ++counts[static_cast<std::size_t>(draw(logits, random))];
  EXPECT_EQ(counts[1], 0);
  EXPECT_NEAR(counts[0] / 20000.0, 0.5, 0.015);  // four standard errors
  EXPECT_NEAR(counts[2] / 20000.0, 0.3, 0.015);
  EXPECT_NEAR(counts[3] / 20000.0, 0.2, 0.015);
}

TEST(Sampling, RefusesLogitsThatAreNoNumbers) {
  Random random(0);
  std::vector<float> none, nan{1, std::nanf(""), 2}, removed{-kInfinity, -kInfinity};
  for (auto* logits : {&none, &nan, &removed}) {
    try {
      sample(*logits, {}, SamplingConfig{.temperature = 1}, random);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::non_finite);
      EXPECT_THAT(error.what(), testing::HasSubstr("not finite"));
    }
  }
}

TEST(SamplingConfig, NamesTheSettingThatIsWrong) {
  const auto message = [](SamplingConfig config) { return message_of([&] { config.validate(); }); };
  EXPECT_EQ(message({}), "");
  EXPECT_THAT(message({.temperature = -1}), testing::HasSubstr("temperature"));
  EXPECT_THAT(message({.temperature = std::nan("")}), testing::HasSubstr("temperature"));
  EXPECT_THAT(message({.top_k = -1}), testing::HasSubstr("top_k"));
  EXPECT_THAT(message({.top_p = 0}), testing::HasSubstr("top_p"));
  EXPECT_THAT(message({.min_p = 2}), testing::HasSubstr("min_p"));
  EXPECT_THAT(message({.repeat_penalty = 0}), testing::HasSubstr("repeat_penalty"));
}

}  // namespace
}  // namespace llava::generate
