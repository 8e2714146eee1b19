// llava data as a person meets it: what is printed where, exit codes, files written.
#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using support::llava;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

/// Four samples, of which the second and third are bad, and a model folder that can tokenize.
class DataVerb : public testing::Test {
 protected:
  DataVerb() {
    folder_.write("images/a.ppm", "P6 2 2 255\n" + std::string(12, 'x'));
    folder_.write("set.json", R"([
{"id": "one", "image": "a.ppm", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]},
{"id": "two", "image": "b.ppm", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]},
{"id": "three", "conversations": [{"from": "human", "value": "Hi"}]},
{"id": "four", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
])");
  }

  std::string path(const std::string& name) const { return folder_ / name; }

  support::Outcome data(std::vector<std::string> words) const {
    words.insert(words.begin(), "data");
    words.insert(words.end(), {"--data_path", path("set.json"), "--image_folder", path("images")});
    return llava(words);
  }

  std::string model() const {
    const auto made = llava({"init", "--shape", "tiny", "--output_dir", path("model")});
    EXPECT_EQ(made.exit, 0) << made.err;
    return path("model");
  }

  support::TemporaryFolder folder_;
};

TEST_F(DataVerb, CheckListsBadSamplesAndExitsWith3) {
  const auto checked = data({"check"});
  EXPECT_EQ(checked.exit, 3);
  EXPECT_EQ(checked.err, "");
  EXPECT_THAT(checked.out,
              AllOf(HasSubstr("set.json:3: sample \"two\""), HasSubstr("b.ppm"),
                    HasSubstr("set.json:4: sample \"three\": the last turn is not answered"),
                    HasSubstr("2 of 4 samples are good\n")));
}

TEST_F(DataVerb, CheckAsJsonHasTheContractsKeys) {
  const auto checked = data({"check", "--json"});
  EXPECT_EQ(checked.exit, 3);
  const auto json = parse_json(checked.out, "stdout");
  EXPECT_EQ(json["samples"], 4);
  EXPECT_EQ(json["good"], 2);
  ASSERT_EQ(json["bad"].size(), 2u);
  EXPECT_EQ(json["bad"][0]["id"], "two");
  EXPECT_EQ(json["bad"][0]["line"], 3);
  EXPECT_EQ(json["bad"][0]["file"], path("set.json"));
  EXPECT_THAT(json["bad"][0]["why"].get<std::string>(), HasSubstr("b.ppm"));
}

TEST_F(DataVerb, TheFixListHoldsTheGoodSamplesAndPasses) {
  EXPECT_EQ(data({"check", "--fix-list", path("good.json")}).exit, 3);
  const auto good = read_json(path("good.json"));
  ASSERT_EQ(good.size(), 2u);
  EXPECT_EQ(good[0]["id"], "one");
  EXPECT_EQ(good[1]["id"], "four");
  const auto again =
      llava({"data", "check", "--data_path", path("good.json"), "--image_folder", path("images")});
  EXPECT_EQ(again.exit, 0);
  EXPECT_EQ(again.out, "2 of 2 samples are good\n");
}

TEST_F(DataVerb, ShowTellsWhichTokensAreLearned) {
  const auto folder = model();
  const auto shown = data({"show", "-m", folder, "--conv_mode", "v1", "--index", "0"});
  EXPECT_EQ(shown.exit, 0) << shown.err;
  EXPECT_THAT(shown.out, HasSubstr("ASSISTANT:«A cat.</s>»"));

  const auto json =
      parse_json(data({"show", "-m", folder, "--index", "0", "--json"}).out, "stdout");
  ASSERT_EQ(json["ids"].size(), json["labels"].size());
  ASSERT_EQ(json["ids"].size(), json["pieces"].size());
  EXPECT_EQ(json["images"][0]["width"], 2);
  const auto ids = json["ids"].get<std::vector<std::int64_t>>();
  EXPECT_EQ(std::count(ids.begin(), ids.end(), -200), 1);
  EXPECT_EQ(json["labels"][0], -100);
  EXPECT_EQ(json["labels"].back(), ids.back());  // </s>
}

TEST_F(DataVerb, StatsCountsTokensWithAModel) {
  const auto stats = data({"stats", "-m", model(), "--json"});
  EXPECT_EQ(stats.exit, 0) << stats.err;
  const auto json = parse_json(stats.out, "stdout");
  EXPECT_EQ(json["samples"], 4);
  EXPECT_EQ(json["broken"], 2);
  EXPECT_GT(json["learned_tokens"].get<int>(), 0);
}

TEST_F(DataVerb, BrokenFilesAndWrongOptionsAreOneLineOnStderr) {
  folder_.write("set.json", "[{\"id\": \"one\"},\n{\"id\": \"two\"");
  const auto broken = data({"check"});
  EXPECT_EQ(broken.exit, 3);
  EXPECT_EQ(broken.out, "");
  EXPECT_THAT(broken.err, AllOf(StartsWith("llava: "), HasSubstr("set.json:2:")));
  EXPECT_EQ(std::count(broken.err.begin(), broken.err.end(), '\n'), 1);

  const auto misspelt = llava({"data", "chek"});
  EXPECT_EQ(misspelt.exit, 2);
  EXPECT_THAT(misspelt.err, HasSubstr("did you mean \"check\""));
  EXPECT_EQ(llava({"data", "check"}).exit, 2);
  EXPECT_EQ(llava({"data", "check", "--data_path", path("none.json")}).exit, 3);
  EXPECT_THAT(data({"show"}).err, HasSubstr("-m DIR"));
}

}  // namespace
}  // namespace llava
