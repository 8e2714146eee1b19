#include "llava/data/report.h"

#include "set.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::data {
namespace {

using support::error_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct ReportTest : testing::Test {
  ReportTest() {
    folder.write("images/coco/a.ppm", ppm(30, 20));
    folder.write("images/coco/cut.ppm", ppm(30, 20).substr(0, 100));
    folder.write("images/gqa/b.ppm", ppm(16, 16));
    folder.write("images/not.jpg", "<html>no image</html>");
    config.media.image_folder = folder / "images";
    config.threads = 2;
  }

  Records records() { return Records(folder.write("set.json", list.dump(1))); }

  /// "id: why" of every bad sample.
  std::vector<std::string> bad(const input::Encoder* encoder = nullptr) {
    std::vector<std::string> found;
    good.clear();
    result = check(
        records(), encoder, config,
        [&](const Problem& problem) {
          EXPECT_EQ(problem.file, folder / "set.json");
          EXPECT_GT(problem.line, 1);
          found.push_back(problem.id + ": " + problem.why);
        },
        [&](std::int64_t index) { good.push_back(index); });
    EXPECT_EQ(result.samples, static_cast<std::int64_t>(list.size()));
    EXPECT_EQ(result.good, static_cast<std::int64_t>(good.size()));
    return found;
  }

  support::TemporaryFolder folder;
  Json list = Json::array();
  ReportConfig config;
  CheckResult result;
  std::vector<std::int64_t> good;
};

TEST_F(ReportTest, CheckFindsEveryKindOfBadSample) {
  const Json fine = sample("fine", {"<image>\nWhat?", "This."}, "coco/a.ppm");
  auto odd = fine;
  odd["id"] = "turns";
  odd["conversations"][1]["from"] = "human";
  list = {fine,
          sample("missing", {"<image>", "x"}, "coco/none.ppm"),
          sample("html", {"<image>", "x"}, "not.jpg"),
          sample("outside", {"<image>", "x"}, "../set.json"),
          odd,
          sample("no mark", {"Hi", "x"}, "coco/a.ppm"),
          sample("no image", {"<image>", "x"}),
          sample("three marks", {"<image><image><image>", "x"}, {"coco/a.ppm", "gqa/b.ppm"}),
          sample("later mark", {"<image>", "x", "<image>", "y"}, "coco/a.ppm"),
          sample("twice in a turn", {"<image> <image>", "x"}, "coco/a.ppm"),
          sample("two", {"<image><image>", "x"}, {"coco/a.ppm", "gqa/b.ppm"}),
          sample("text", {"Hi", "x"})};
  EXPECT_THAT(bad(), ElementsAre(AllOf(HasSubstr("missing: "), HasSubstr("none.ppm")),
                                 AllOf(HasSubstr("html: "), HasSubstr("not.jpg")),
                                 HasSubstr("leads outside"), HasSubstr("out of turn"),
                                 HasSubstr("0 <image> marks for 1 pictures"),
                                 HasSubstr("3 <image> marks for 2 pictures"),
                                 HasSubstr("2 <image> marks for 1 pictures")));
  EXPECT_THAT(good, ElementsAre(0, 6, 9, 10, 11));
}

// What check calls good can be trained on, and the other way round.
TEST_F(ReportTest, CheckAgreesWithTheLoader) {
  list = {sample("a", {"<image>\nWhat?", "This."}, "coco/a.ppm"),
          sample("b", {"<image><image>", "x"}, {"coco/a.ppm", "gqa/b.ppm"}),
          sample("c", {"<image> <image>", "x"}, "coco/a.ppm"),
          sample("d", {"<image>", "x", "<image>", "y"}, "coco/a.ppm"),
          sample("e", {"Hi", "x"}, "coco/a.ppm"),
          sample("f", {"<image>", "x"}, "not.jpg"),
          sample("g", {"Hi", "x"}),
          sample("h", {"Write <image> twice", "<image><image>"})};
  const auto& encoder = small_encoder();
  bad(&encoder);
  const auto set = records();
  for (std::int64_t i = 0; i < set.size(); ++i) {
    bool loads = true;
    try {
      load_example(set.at(i), encoder, config.media);
    } catch (const Error&) {
      loads = false;
    }
    EXPECT_EQ(loads, std::find(good.begin(), good.end(), i) != good.end()) << set.at(i).id;
  }
}

TEST_F(ReportTest, CheckSeesPastTheHeaderOnlyWhenAsked) {
  list = {sample("cut", {"<image>", "x"}, "coco/cut.ppm")};
  EXPECT_TRUE(bad().empty());
  config.decode = true;
  EXPECT_THAT(bad(), ElementsAre(HasSubstr("cut.ppm")));
}

TEST_F(ReportTest, CheckWithAModelFindsOverlongSamples) {
  std::string words = "word";
  for (int i = 0; i < 100; ++i) words += " word";
  list = {sample("short", {"Hi", "x"}), sample("long", {"Hi", words})};
  const auto& encoder = small_encoder();
  config.max_tokens = 100;
  EXPECT_THAT(bad(&encoder), ElementsAre(HasSubstr("more than model_max_length 100")));
  EXPECT_THAT(good, ElementsAre(0));
}

TEST_F(ReportTest, CheckReportsInOrderWhateverTheThreads) {
  for (int i = 0; i < 1000; ++i)
    list.push_back(sample(std::to_string(i), {"Hi", i % 7 == 3 ? "" : "Ho"}));
  config.threads = 1;
  const auto one = bad();
  config.threads = 4;
  EXPECT_EQ(bad(), one);
  EXPECT_EQ(one.size(), 143u);
}

TEST_F(ReportTest, CheckPassesOnWhatTheCallerThrows) {
  for (int i = 0; i < 2000; ++i) list.push_back(sample(std::to_string(i), {"Hi", "Ho"}));
  const auto stop = [](std::int64_t) { fail(Fault::failure, "disk full"); };
  const auto set = records();
  EXPECT_THAT(error_of(Fault::failure,
                       [&] {
                         check(
                             set, nullptr, config, [](const Problem&) {}, stop);
                       }),
              HasSubstr("disk full"));
}

TEST_F(ReportTest, StatsCountsWhatIsThere) {
  list = {sample("a", {"<image>\nWhat is this?", "A cat."}, "coco/a.ppm"),
          sample("b", {"<image><image>", "x", "y z", "w"}, {"gqa/b.ppm", "coco/a.ppm"}),
          sample("c", {"Hi", "Ho"}), sample("d", {"Hi", ""})};
  const auto plain = stats(records(), nullptr, config);
  EXPECT_EQ(plain["samples"], 4);
  EXPECT_EQ(plain["broken"], 1);
  EXPECT_EQ(plain["with_images"], 2);
  EXPECT_EQ(plain["several_images"], 1);
  EXPECT_EQ(plain["images"], 3);
  EXPECT_EQ(plain["text_only"], 1);
  EXPECT_EQ(plain["turns"], 8);
  EXPECT_EQ(plain["words"], 6 + 5 + 2);
  EXPECT_EQ(plain["turns_per_sample"]["max"], 4);
  EXPECT_EQ(plain["sources"], Json({{"(text only)", 1}, {"coco", 1}, {"gqa", 1}}));
  EXPECT_FALSE(plain.contains("tokens"));

  const auto& encoder = small_encoder();
  const auto full = stats(records(), &encoder, config);
  std::int64_t tokens = 0, learned = 0;
  const auto set = records();
  for (const std::int64_t i : {0, 1, 2}) {
    const auto example = load_example(set.at(i), encoder, config.media);
    tokens += example.num_tokens();
    learned += input::num_learned(example);
  }
  EXPECT_EQ(full["tokens"], tokens);
  EXPECT_EQ(full["learned_tokens"], learned);
  EXPECT_EQ(full["tiles"], 3);
  EXPECT_EQ(full["image_tokens"], 3 * 4);
}

TEST_F(ReportTest, ShowGivesTheSampleAsTheModelSeesIt) {
  list = {sample("a", {"Hi", "Ho"}),
          sample("b", {"<image>\nWhat is\x1b this?", "A 猫."}, "coco/a.ppm")};
  const auto& encoder = small_encoder();
  const auto set = records();
  const auto shown = show(set, 1, encoder, config);
  const auto example = load_example(set.at(1), encoder, config.media);
  EXPECT_EQ(shown["id"], "b");
  EXPECT_EQ(shown["ids"], Json(example.ids));
  EXPECT_EQ(shown["labels"], Json(example.labels));
  EXPECT_EQ(shown["pieces"].size(), example.ids.size());
  const auto slot =
      std::find(example.ids.begin(), example.ids.end(), input::kImageToken) - example.ids.begin();
  EXPECT_EQ(shown["pieces"][static_cast<std::size_t>(slot)], "<image>");
  EXPECT_EQ(shown["images"],
            Json::parse(
                R"([{"file": "coco/a.ppm", "width": 30, "height": 20, "tiles": 1, "tokens": 4}])"));

  const auto text = show_text(shown, encoder, false);
  EXPECT_THAT(text, HasSubstr("What is\\x1b this? ASSISTANT:«A 猫.</s>»\n"));
  EXPECT_THAT(text, HasSubstr("USER: [coco/a.ppm: 4 tokens]"));
  EXPECT_THAT(show_text(shown, encoder, true), HasSubstr("\x1b[32mA 猫.</s>\x1b[0m"));
  EXPECT_THAT(error_of(Fault::usage, [&] { show(set, 2, encoder, config); }), HasSubstr("0 to 1"));
}

}  // namespace
}  // namespace llava::data
