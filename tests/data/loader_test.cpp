#include "llava/data/loader.h"

#include "llava/base/log.h"
#include "set.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::data {
namespace {

using support::error_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// Twenty samples: a third without a picture, the others with one of three pictures.
struct LoaderTest : testing::Test {
  LoaderTest() {
    log::set_level(log::Level::error);
    for (int i = 0; i < 3; ++i)
      folder.write("p" + std::to_string(i) + ".ppm", ppm(20 + 9 * i, 30, 40 * i));
    for (int i = 0; i < 20; ++i) {
      const bool text = i % 3 == 0;
      std::string answer = "yes";
      for (int k = 0; k < i; ++k) answer += " and so on";
      list.push_back(sample(std::to_string(i), {text ? "Why?" : "<image>\nWhat?", answer},
                            text ? Json(nullptr) : Json("p" + std::to_string(i % 3) + ".ppm")));
    }
  }
  ~LoaderTest() override { log::set_level(log::Level::info); }

  const Records& records() {
    if (!opened) opened.emplace(folder.write("set.json", list.dump()));
    return *opened;
  }
  Sampler sampler(SamplerConfig config = {.rows = 3, .accumulation = 2}) {
    Lengths lengths;
    for (std::size_t i = 0; i < list.size(); ++i) {
      lengths.words.push_back(i % 3 == 0 ? -5 : 5);
      lengths.tokens.push_back(static_cast<std::int32_t>(10 + i));
    }
    return {lengths, config};
  }
  LoaderConfig config(std::int64_t workers = 2) {
    LoaderConfig config;
    config.media.image_folder = folder.path();
    config.workers = workers;
    return config;
  }
  /// In the file's order, `rows` a step.
  static SamplerConfig in_order(std::int64_t rows) {
    return {.order = Order::sequential, .balanced = false, .rows = rows};
  }

  support::TemporaryFolder folder;
  Json list = Json::array();
  std::optional<Records> opened;
  const input::Encoder& encoder = small_encoder();
};

void expect_equal(const input::Batch& a, const input::Batch& b) {
  EXPECT_EQ(a.example_ids, b.example_ids);
  EXPECT_EQ(a.starts, b.starts);
  EXPECT_TRUE(a.ids.equal(b.ids));
  EXPECT_TRUE(a.labels.equal(b.labels));
  ASSERT_EQ(a.tiles.defined(), b.tiles.defined());
  EXPECT_TRUE(!a.tiles.defined() || a.tiles.equal(b.tiles));
}

// The oracle: the sampler's plan, each sample loaded and collated here, one after the other.
TEST_F(LoaderTest, GivesTheSamplersPlanWhateverTheThreads) {
  for (const std::int64_t workers : {1, 2, 5}) {
    Loader loader(records(), encoder, sampler(), config(workers));
    auto plan = sampler();
    for (std::int64_t number = 0; number < 9; ++number) {  // more than two epochs
      const auto step = loader.next();
      EXPECT_EQ(step.step, number);
      const auto want = plan.step(number);
      ASSERT_EQ(step.micro_batches.size(), want.size());
      std::int64_t tokens = 0, learned = 0, samples = 0;
      for (std::size_t i = 0; i < want.size(); ++i) {
        std::vector<input::Example> examples;
        for (const auto index : want[i])
          examples.push_back(load_example(records().at(index), encoder, config().media));
        expect_equal(step.micro_batches[i], input::collate(examples));
        for (const auto& example : examples) {
          tokens += example.num_tokens();
          learned += input::num_learned(example);
          ++samples;
        }
      }
      EXPECT_EQ(step.num_tokens, tokens);
      EXPECT_EQ(step.num_learned, learned);
      EXPECT_EQ(step.num_samples, samples);
    }
  }
}

TEST_F(LoaderTest, SeekGivesWhatAnUninterruptedRunWouldHave) {
  Loader straight(records(), encoder, sampler(), config());
  std::vector<Step> steps;
  for (int i = 0; i < 7; ++i) steps.push_back(straight.next());
  Loader resumed(records(), encoder, sampler(), config());
  for (const std::int64_t from : {5, 1}) {
    resumed.seek(from);
    for (auto number = from; number < from + 2; ++number) {
      const auto step = resumed.next();
      EXPECT_EQ(step.step, number);
      const auto& want = steps[static_cast<std::size_t>(number)].micro_batches;
      ASSERT_EQ(step.micro_batches.size(), want.size());
      for (std::size_t i = 0; i < want.size(); ++i) expect_equal(step.micro_batches[i], want[i]);
    }
  }
}

TEST_F(LoaderTest, RanksTogetherHaveTheGlobalBatch) {
  SamplerConfig both{.rows = 2, .accumulation = 2, .world = 2};
  std::vector<std::string> ids;
  for (both.rank = 0; both.rank < 2; ++both.rank) {
    Loader loader(records(), encoder, sampler(both), config());
    for (const auto& batch : loader.next().micro_batches)
      ids.insert(ids.end(), batch.example_ids.begin(), batch.example_ids.end());
  }
  both.rank = 0;
  std::vector<std::string> want;
  for (const auto index : sampler(both).members(0)) want.push_back(std::to_string(index));
  std::sort(ids.begin(), ids.end());
  std::sort(want.begin(), want.end());
  EXPECT_EQ(ids, want);
}

TEST_F(LoaderTest, ABadImageStopsTheRunWhenItsStepIsDue) {
  list[7]["image"] = "none.ppm";
  Loader loader(records(), encoder, sampler(in_order(4)), config());
  EXPECT_EQ(loader.next().num_samples, 4);
  EXPECT_THAT(error_of(Fault::data, [&] { loader.next(); }),
              AllOf(HasSubstr("set.json:1: sample \"7\""), HasSubstr("none.ppm")));
}

TEST_F(LoaderTest, SkipLeavesBadSamplesOutAndCountsThem) {
  list[4]["image"] = "none.ppm";
  list[5]["conversations"][0]["value"] = "no mark";
  list[6]["conversations"][1]["value"] = "";
  auto skip = config();
  skip.on_bad_image = OnBadImage::skip;
  Loader loader(records(), encoder, sampler(in_order(4)), skip);
  EXPECT_EQ(loader.next().losses.skipped, 0);
  const auto step = loader.next();
  EXPECT_EQ(step.losses.skipped, 3);
  EXPECT_EQ(step.num_samples, 1);
  EXPECT_THAT(step.micro_batches[0].example_ids, ElementsAre("7"));
}

TEST_F(LoaderTest, AMicroBatchWithoutSamplesTeachesNothing) {
  list[1]["image"] = "none.ppm";
  auto skip = config();
  skip.on_bad_image = OnBadImage::skip;
  Loader loader(
      records(), encoder,
      sampler({.order = Order::sequential, .balanced = false, .rows = 1, .accumulation = 2}), skip);
  const auto step = loader.next();
  ASSERT_EQ(step.micro_batches.size(), 2u);  // as many as the other ranks have
  EXPECT_EQ(step.micro_batches[1].rows(), 1);
  EXPECT_EQ(step.micro_batches[1].num_learned(), 0);
  EXPECT_EQ(step.micro_batches[1].num_tokens(), 1);
}

TEST_F(LoaderTest, OverlongSamplesAreRefusedDroppedOrCut) {
  std::string words = "word";
  for (int i = 0; i < 100; ++i) words += " word";
  list[0]["conversations"][1]["value"] = words;
  auto limited = config();
  limited.max_tokens = 80;

  limited.on_overlength = OnOverlength::error;
  Loader strict(records(), encoder, sampler(in_order(2)), limited);
  EXPECT_THAT(error_of(Fault::data, [&] { strict.next(); }),
              AllOf(HasSubstr("sample \"0\" has"), HasSubstr("model_max_length 80")));

  limited.on_overlength = OnOverlength::drop;
  const auto dropped = Loader(records(), encoder, sampler(in_order(2)), limited).next();
  EXPECT_EQ(dropped.losses.dropped, 1);
  EXPECT_THAT(dropped.micro_batches[0].example_ids, ElementsAre("1"));

  limited.on_overlength = OnOverlength::truncate;
  const auto cut = Loader(records(), encoder, sampler(in_order(2)), limited).next();
  EXPECT_EQ(cut.losses.truncated, 1);
  EXPECT_EQ(cut.micro_batches[0].starts[1], 80);
}

TEST_F(LoaderTest, CountsSamplesThatTeachNothing) {
  std::string words = "word";
  for (int i = 0; i < 100; ++i) words += " word";
  list[0]["conversations"][0]["value"] = words;  // the answer is cut off
  auto limited = config();
  limited.max_tokens = 80;
  const auto step = Loader(records(), encoder, sampler(in_order(1)), limited).next();
  EXPECT_EQ(step.losses.unsupervised, 1);
  EXPECT_EQ(step.num_learned, 0);
  EXPECT_EQ(step.num_samples, 1);
}

TEST_F(LoaderTest, LeavingInTheMiddleDoesNotHang) {
  for (int taken = 0; taken < 3; ++taken) {
    Loader loader(records(), encoder, sampler(), config(4));
    for (int i = 0; i < taken; ++i) loader.next();
    if (taken == 2) loader.seek(100);
  }
}

TEST_F(LoaderTest, RefusesSettingsOutOfRange) {
  EXPECT_THAT(error_of(Fault::usage, [&] { Loader(records(), encoder, sampler(), config(0)); }),
              HasSubstr("dataloader_num_workers"));
  EXPECT_EQ(parse_on_bad_image("skip"), OnBadImage::skip);
  EXPECT_EQ(parse_on_overlength("drop"), OnOverlength::drop);
  EXPECT_THAT(error_of(Fault::usage, [] { parse_on_bad_image("drop"); }),
              HasSubstr("fail or skip"));
  EXPECT_THAT(error_of(Fault::usage, [] { parse_on_overlength("cut"); }), HasSubstr("truncate"));
}

}  // namespace
}  // namespace llava::data
