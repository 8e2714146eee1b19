#include "llava/data/sampler.h"

#include "llava/base/config.h"
#include "set.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <numeric>
#include <optional>
#include <random>
#include <set>

namespace llava::data {
namespace {

using Indices = std::vector<std::int64_t>;
using testing::ElementsAre;
using testing::HasSubstr;

/// Lengths as uneven as real ones: most short, some twenty times as long; a quarter without
/// pictures.
Lengths uneven(std::size_t count, unsigned seed = 3) {
  std::mt19937 random(seed);
  Lengths lengths;
  for (std::size_t i = 0; i < count; ++i) {
    const auto words =
        static_cast<std::int32_t>(5 + random() % 40 + (random() % 8 == 0 ? random() % 900 : 0));
    const bool text = random() % 4 == 0;
    lengths.words.push_back(text ? -words : words);
    lengths.tokens.push_back(words * 4 / 3 + (text ? 40 : 616));
  }
  return lengths;
}

Indices flat(const Plan& plan) {
  Indices all;
  for (const auto& micro_batch : plan)
    all.insert(all.end(), micro_batch.begin(), micro_batch.end());
  return all;
}

std::int64_t tokens(const Indices& samples, const Lengths& lengths) {
  std::int64_t sum = 0;
  for (const auto i : samples) sum += lengths.tokens[static_cast<std::size_t>(i)];
  return sum;
}

/// Every rank's plan of one step.
std::vector<Plan> plans(const Lengths& lengths, SamplerConfig config, std::int64_t step) {
  std::vector<Plan> all;
  for (config.rank = 0; config.rank < config.world; ++config.rank)
    all.push_back(Sampler(lengths, config).step(step));
  return all;
}

// Recorded from the reference's own functions with our random numbers; see
// tests/golden/data/README.md.
TEST(EpochOrder, IsTheReferencesModalityLengthGrouping) {
  const auto cases = read_json(LLAVA_GOLDEN "/orders.json");
  ASSERT_GE(cases.size(), 10u);
  for (const auto& one : cases) {
    Lengths lengths;
    lengths.words = one["lengths"].get<std::vector<std::int32_t>>();
    lengths.tokens.assign(lengths.words.size(), 1);
    // One process that accumulates, so that nothing is completed.
    const SamplerConfig config{.order = Order::grouped,
                               .rows = one["rows"],
                               .accumulation = one["parts"],
                               .seed = one["seed"]};
    EXPECT_EQ(epoch_order(lengths, config, one["epoch"]), one["order"].get<Indices>())
        << one["lengths"].size();
  }
}

TEST(EpochOrder, HasEverySampleOnceInEachEpoch) {
  const auto lengths = uneven(103);
  for (const auto order : {Order::sequential, Order::shuffled, Order::grouped}) {
    const SamplerConfig config{.order = order, .rows = 4, .accumulation = 3};
    auto first = epoch_order(lengths, config, 0), second = epoch_order(lengths, config, 1);
    EXPECT_EQ(first == second, order == Order::sequential);
    std::sort(first.begin(), first.end());
    Indices all(103);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(first, all);
  }
}

TEST(Sampler, SequentialKeepsTheFilesOrder) {
  Sampler sampler(uneven(7),
                  {.order = Order::sequential, .balanced = false, .rows = 2, .accumulation = 2});
  EXPECT_THAT(sampler.step(0), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(sampler.step(1), ElementsAre(ElementsAre(4, 5), ElementsAre(6)));
  EXPECT_THAT(sampler.step(2),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));  // the next epoch
}

// Batch number c goes to rank c mod world at micro-step c / world; the tail wraps around.
TEST(Sampler, DealsToRanksAsTheReferenceDoes) {
  const SamplerConfig config{
      .order = Order::sequential, .balanced = false, .rows = 2, .accumulation = 2, .world = 2};
  const auto first = plans(uneven(11), config, 0), last = plans(uneven(11), config, 1);
  EXPECT_THAT(first[0], ElementsAre(ElementsAre(0, 1), ElementsAre(4, 5)));
  EXPECT_THAT(first[1], ElementsAre(ElementsAre(2, 3), ElementsAre(6, 7)));
  EXPECT_THAT(last[0], ElementsAre(ElementsAre(8, 9)));
  EXPECT_THAT(last[1], ElementsAre(ElementsAre(10, 0)));
}

// 558,128 samples at 256 and 665,298 at 128 a step: the published runs' step counts.
TEST(Sampler, CountsStepsAsThePublishedRuns) {
  Lengths lengths;
  lengths.words.assign(558'128, 1);
  lengths.tokens.assign(558'128, 1);
  EXPECT_EQ(Sampler(lengths, {.rows = 32, .world = 8}).steps_per_epoch(), 2181);
  lengths.words.assign(665'298, 1);
  lengths.tokens.assign(665'298, 1);
  EXPECT_EQ(Sampler(lengths, {.rows = 16, .world = 8}).steps_per_epoch(), 5198);
  EXPECT_EQ(Sampler(lengths, {.rows = 4, .accumulation = 4, .world = 8}).steps_per_epoch(), 5198);
}

TEST(Sampler, AStepDependsOnNothingButItsNumber) {
  const SamplerConfig config{
      .order = Order::grouped, .rows = 3, .accumulation = 2, .rank = 1, .world = 2};
  Sampler forward(uneven(50), config);
  std::vector<Plan> steps;
  for (std::int64_t step = 0; step < 15; ++step) steps.push_back(forward.step(step));
  Sampler resumed(uneven(50), config);
  for (const std::int64_t step : {14, 3, 7, 0, 4})
    EXPECT_EQ(resumed.step(step), steps[static_cast<std::size_t>(step)]);
}

TEST(Deal, KeepsTheMembershipOfEveryGlobalBatch) {
  const auto lengths = uneven(97);
  for (const std::int64_t budget : {0, 3000}) {
    const SamplerConfig config{
        .order = Order::grouped, .rows = 3, .accumulation = 2, .token_budget = budget, .world = 4};
    Sampler sampler(lengths, config);
    for (std::int64_t step = 0; step < sampler.steps_per_epoch(); ++step) {
      auto members = sampler.members(step);
      Indices dealt;
      for (const auto& plan : plans(lengths, config, step)) {
        const auto own = flat(plan);
        dealt.insert(dealt.end(), own.begin(), own.end());
      }
      std::sort(members.begin(), members.end());
      std::sort(dealt.begin(), dealt.end());
      EXPECT_EQ(dealt, members);
    }
  }
}

TEST(Deal, GivesEveryRankEquallyManyMicroBatchesNoneEmpty) {
  const auto lengths = uneven(61);
  for (const std::int64_t world : {1, 2, 3, 8})
    for (const std::int64_t budget : {0, 1, 1500, 1'000'000}) {
      const SamplerConfig config{
          .rows = 2, .accumulation = 3, .token_budget = budget, .world = world};
      const auto steps = Sampler(lengths, config).steps_per_epoch();
      for (std::int64_t step = 0; step < steps; ++step) {
        const auto all = plans(lengths, config, step);
        for (const auto& plan : all) {
          EXPECT_EQ(plan.size(), all[0].size());
          for (const auto& micro_batch : plan) {
            EXPECT_FALSE(micro_batch.empty());
            EXPECT_TRUE(budget > 0 || micro_batch.size() <= 2);
          }
        }
      }
    }
}

/// How much the fullest rank and micro-batch hold against the mean, over the first four steps.
std::pair<double, double> excess(const Lengths& lengths, const SamplerConfig& config) {
  double rank = 0, micro = 0;
  for (std::int64_t step = 0; step < 4; ++step) {
    const auto all = plans(lengths, config, step);
    std::int64_t sum = 0, fullest_rank = 0, fullest_micro = 0, micros = 0;
    for (const auto& plan : all) {
      const auto own = tokens(flat(plan), lengths);
      sum += own;
      fullest_rank = std::max(fullest_rank, own);
      micros += static_cast<std::int64_t>(plan.size());
      for (const auto& micro_batch : plan)
        fullest_micro = std::max(fullest_micro, tokens(micro_batch, lengths));
    }
    rank =
        std::max(rank, static_cast<double>(fullest_rank * config.world) / static_cast<double>(sum));
    micro = std::max(micro, static_cast<double>(fullest_micro * micros) / static_cast<double>(sum));
  }
  return {rank, micro};
}

/// The supervised tokens of the rank with the most and of that with the least against the mean.
double uneven_learned(const Lengths& lengths, const SamplerConfig& config,
                      std::optional<Lengths> known = {}) {
  double worst = 0;
  for (std::int64_t step = 0; step < 4; ++step) {
    std::vector<double> learned;
    for (const auto& plan : plans(known.value_or(lengths), config, step)) {
      double sum = 0;
      for (const auto i : flat(plan)) sum += lengths.learned[static_cast<std::size_t>(i)];
      learned.push_back(sum);
    }
    const double mean =
        std::accumulate(learned.begin(), learned.end(), 0.0) / static_cast<double>(learned.size());
    for (const double own : learned) worst = std::max(worst, std::abs(own / mean - 1));
  }
  return worst;
}

TEST(Deal, RanksCarryEqualSupervisedTokens) {
  // Conversations of which a fifth to four fifths are answers; a quarter without pictures.
  std::mt19937 random(5);
  Lengths lengths;
  for (int i = 0; i < 512; ++i) {
    const auto words = static_cast<std::int32_t>(60 + random() % 300 + random() % 6 / 5 * 300);
    lengths.words.push_back(random() % 4 == 0 ? -words : words);
    lengths.tokens.push_back(words * 4 / 3 + (lengths.words.back() < 0 ? 40 : 616));
    lengths.learned.push_back(static_cast<std::int32_t>(words * (20 + random() % 60) / 75));
  }
  const SamplerConfig recipe{.rows = 16, .world = 8};  // LLaVA-1.5, Stage 2
  EXPECT_LT(excess(lengths, recipe).first, 1.0101);
  EXPECT_LT(uneven_learned(lengths, recipe), 0.02);
  EXPECT_LT(uneven_learned(lengths, {.rows = 4, .accumulation = 4, .world = 8}), 0.02);
  EXPECT_LT(uneven_learned(lengths, {.rows = 16, .token_budget = 6000, .world = 8}), 0.02);
  // Equal tokens alone do not make them equal.
  const auto by_tokens = [&] {
    auto without = lengths;
    without.learned.clear();
    return without;
  }();
  EXPECT_GT(uneven_learned(lengths, recipe, by_tokens), 0.1);
}

TEST(Deal, RanksAndMicroBatchesCarryEqualTokens) {
  const auto lengths = uneven(512);
  const SamplerConfig recipe{.rows = 16, .world = 8};  // LLaVA-1.5, Stage 2
  EXPECT_LT(excess(lengths, recipe).first, 1.002);
  const SamplerConfig small{.rows = 4, .accumulation = 4, .world = 8};
  EXPECT_LT(excess(lengths, small).first, 1.03);
  EXPECT_LT(excess(lengths, small).second, 1.2);
  auto reference = small;
  reference.balanced = false;
  EXPECT_GT(excess(lengths, reference).first, 1.2);
  EXPECT_GT(excess(lengths, reference).second, 2);
}

TEST(Deal, StaysWithinTheTokenBudgetWithFewMicroBatches) {
  const auto lengths = uneven(256);
  const SamplerConfig config{.rows = 64, .token_budget = 4096, .world = 2};
  for (std::int64_t step = 0; step < 2; ++step) {
    std::int64_t sum = 0;
    const auto all = plans(lengths, config, step);
    for (const auto& plan : all)
      for (const auto& micro_batch : plan) {
        sum += tokens(micro_batch, lengths);
        EXPECT_LE(tokens(micro_batch, lengths), 4096);
      }
    const auto fewest = (sum + 2 * 4096 - 1) / (2 * 4096);
    EXPECT_LE(static_cast<std::int64_t>(all[0].size()), fewest + 3);
  }
}

TEST(Deal, ASampleLongerThanTheBudgetStandsAlone) {
  Lengths lengths;
  lengths.words = {1, 1, 1, 1};
  lengths.tokens = {10, 500, 10, 10};
  const auto plans = deal({0, 1, 2, 3}, lengths, {.rows = 4, .token_budget = 100});
  EXPECT_THAT(plans[0], ElementsAre(ElementsAre(1), ElementsAre(0, 2, 3)));
}

// 2 ranks = 1 rank that accumulates: the same samples in the same global batches.
TEST(Sampler, TheWorldsSizeDoesNotChangeAGlobalBatch) {
  const auto lengths = uneven(96);
  Sampler alone(lengths, {.order = Order::grouped, .rows = 2, .accumulation = 4});
  Sampler pair(lengths, {.order = Order::grouped, .rows = 2, .accumulation = 2, .world = 2});
  for (std::int64_t step = 0; step < 24; ++step) EXPECT_EQ(alone.members(step), pair.members(step));
}

TEST(Sampler, RefusesSettingsOutOfRange) {
  const auto refused = [&](SamplerConfig config) {
    return support::error_of(Fault::usage, [&] { Sampler sampler(uneven(4), config); });
  };
  EXPECT_THAT(refused({.rows = 0}), HasSubstr("per_device_train_batch_size"));
  EXPECT_THAT(refused({.accumulation = 0}), HasSubstr("gradient_accumulation_steps"));
  EXPECT_THAT(refused({.token_budget = -1}), HasSubstr("tokens_per_micro_batch"));
  EXPECT_THAT(refused({.balanced = false, .token_budget = 5}), HasSubstr("--sampler balanced"));
  EXPECT_THAT(refused({.rank = 2, .world = 2}), HasSubstr("rank 2 of 2"));
}

TEST(Lengths, CountWordsAsTheReferenceAndTokensExactlyWhenMeasured) {
  const support::TemporaryFolder folder;
  folder.write("a.ppm", ppm(30, 20));
  const auto path =
      folder.write("set.json", Json{sample("a", {"<image>\nWhat is this?", "A cat."}, "a.ppm"),
                                    sample("b", {"Who are you?", "I am a model."})}
                                   .dump());
  const Records records(path);
  const auto& encoder = small_encoder();
  const auto estimated = estimate_lengths(records, 4, 2);
  EXPECT_THAT(estimated.words, ElementsAre(6, -7));  // "<image>" is a word, as in the file
  const auto measured = measure_lengths(records, encoder, {.image_folder = folder.path()}, 2);
  EXPECT_EQ(measured.words, estimated.words);
  for (std::int64_t i = 0; i < 2; ++i) {
    const auto example = load_example(records.at(i), encoder, {.image_folder = folder.path()});
    EXPECT_EQ(measured.tokens[static_cast<std::size_t>(i)], example.num_tokens());
    EXPECT_NEAR(estimated.tokens[static_cast<std::size_t>(i)], example.num_tokens(), 25);
  }
}

TEST(Lengths, TheFirstBrokenRecordIsNamedWhateverTheThreads) {
  const support::TemporaryFolder folder;
  Json list = Json::array();
  for (int i = 0; i < 2000; ++i)
    list.push_back(sample(std::to_string(i), {"Hi", i == 700 || i > 1500 ? "" : "Ho"}));
  const Records records(folder.write("set.json", list.dump()));
  for (const std::int64_t threads : {1, 3})
    EXPECT_THAT(support::error_of(Fault::data, [&] { estimate_lengths(records, 1, threads); }),
                HasSubstr("sample \"700\": turn 2 is empty"));
}

}  // namespace
}  // namespace llava::data
