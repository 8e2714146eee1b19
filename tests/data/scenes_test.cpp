#include "llava/data/scenes.h"

#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>
#include <sstream>

namespace llava::data {
namespace {

const Scene kPair{{{Shape::ring, Color::red, true, 0}, {Shape::square, Color::blue, false, 3}}};

TEST(Scenes, CaptionNamesEveryThing) {
  EXPECT_EQ(caption(kPair),
            "A large red ring at the top left and a small blue square at the bottom right.");
}

TEST(Scenes, QuestionsHaveOneRightAnswer) {
  std::map<std::string, std::string> answers;
  std::map<std::string, int> kinds;
  for (const auto& item : questions(kPair, 7)) {
    EXPECT_TRUE(answers.emplace(item.question, item.answer).second) << item.question;
    ++kinds[item.kind];
  }
  EXPECT_EQ(answers["What color is the ring?"], "red");
  EXPECT_EQ(answers["What shape is blue?"], "square");
  EXPECT_EQ(answers["Where is the blue square?"], "bottom right");
  EXPECT_EQ(answers["Is the red ring small or large?"], "large");
  EXPECT_EQ(answers["How many shapes are there?"], "two");
  EXPECT_EQ(kinds["comparison"], 1);
  EXPECT_EQ(kinds["yes/no"], 4);
  int yes = 0;
  for (const auto& [question, answer] : answers) yes += answer == "yes";
  EXPECT_EQ(yes, 2);  // as many yes as no
}

TEST(Scenes, PictureShowsTheThingsWhereTheyAre) {
  const auto image = draw(kPair, 84, 5);
  const auto pixel = [&](int x, int y) { return image.rgb.data() + 3 * (y * 84 + x); };
  EXPECT_GT(pixel(35, 22)[0], 150);  // red at the top left, right of the ring's hole
  EXPECT_LT(pixel(35, 22)[2], 100);
  EXPECT_LT(pixel(22, 22)[0] - pixel(22, 22)[1], 60);  // the hole shows the background
  EXPECT_GT(pixel(62, 62)[2], 150);                    // blue at the bottom right
  EXPECT_LT(pixel(62, 62)[0], 100);
  EXPECT_EQ(draw(kPair, 84, 5).rgb, image.rgb);
  EXPECT_NE(draw(kPair, 84, 6).rgb, image.rgb);
}

struct Files {
  support::TemporaryFolder folder;
  ScenesConfig config;
  Files() {
    config.num_single = 20;
    config.num_train = 60;
    config.num_captions_test = 20;
    config.num_questions = 70;
    config.num_texts = 10;
    make_scenes(folder.path(), config);
  }
  Json json(const std::string& name) const { return read_json(folder / name); }
};

TEST(Scenes, SplitsShareNoScene) {
  const Files files;
  std::set<std::string> train, test;
  for (const auto& sample : files.json("captions.json"))
    train.insert(sample["conversations"][1]["value"].get<std::string>());
  for (const auto& sample : files.json("captions_test.json"))
    test.insert(sample["conversations"][1]["value"].get<std::string>());
  for (const auto& text : test) EXPECT_EQ(train.count(text), 0u) << text;
}

TEST(Scenes, FilesAreWholeAndFollowFromTheSeed) {
  const Files files, again;
  std::size_t formats[2] = {0, 0};
  for (const auto& sample : files.json("talk.json")) {
    const auto name = sample["image"].get<std::string>();
    const auto bytes = read_file(files.folder / ("images/" + name));
    EXPECT_EQ(bytes, read_file(again.folder / ("images/" + name)));
    ++formats[bytes.rfind("\x89PNG", 0) == 0];
    EXPECT_EQ(sample["conversations"].size() % 2, 0u);
    EXPECT_EQ(sample["conversations"][0]["value"].get<std::string>().rfind("<image>\n", 0), 0u);
  }
  EXPECT_GT(formats[0], 0u);
  EXPECT_GT(formats[1], 0u);
  EXPECT_EQ(files.json("text.json"), again.json("text.json"));
  std::map<std::string, int> kinds;
  std::istringstream lines(read_file(files.folder / "questions.jsonl"));
  for (std::string line; std::getline(lines, line);)
    ++kinds[parse_json(line, "questions")["kind"].get<std::string>()];
  EXPECT_EQ(kinds.size(), 7u);
  for (const auto& [kind, count] : kinds) EXPECT_EQ(count, 10) << kind;
}

TEST(Scenes, PicturesMadeOfSignsShowEveryThingAndNothingElse) {
  const Files files;
  std::set<std::string> all;
  for (const auto& sample : files.json("text.json")) {
    std::string text, answers;
    for (const auto& turn : sample["conversations"]) text += turn["value"].get<std::string>() + " ";
    std::istringstream words(text.substr(0, text.find('\n')));
    std::set<std::string> signs;
    int count = 0;
    for (std::string word; words >> word; ++count)
      if (word != ".") signs.insert(word);
    EXPECT_EQ(count, 36);
    EXPECT_GE(signs.size(), 1u);
    EXPECT_LE(signs.size(), 3u);
    for (const auto& sign : signs) EXPECT_EQ(sign.size(), 3u) << "one character of UTF-8";
    for (const auto& [question, things] :
         {std::pair{"there? one", 1u}, {"there? two", 2u}, {"there? three", 3u}})
      if (text.find(question) != text.npos) {
        EXPECT_EQ(signs.size(), things) << text;
      }
    all.merge(signs);
  }
  EXPECT_GT(all.size(), 5u);
}

TEST(Scenes, ShuffledCaptionsAreOnOtherPictures) {
  const Files files;
  const auto right = files.json("captions.json"), wrong = files.json("shuffled.json");
  for (std::size_t i = 0; i < right.size(); ++i) {
    EXPECT_EQ(right[i]["conversations"], wrong[i]["conversations"]);
    EXPECT_NE(right[i]["image"], wrong[i]["image"]);
  }
}

TEST(Scenes, UnusableSizeIsNamed) {
  ScenesConfig config;
  config.image_size = 3;
  EXPECT_THAT(support::error_of(Fault::usage, [&] { make_scenes("/nowhere", config); }),
              testing::HasSubstr("image_size"));
}

}  // namespace
}  // namespace llava::data
