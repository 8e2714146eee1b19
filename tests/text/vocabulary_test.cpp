#include "llava/text/vocabulary.h"

#include "llava/text/tokenizer.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>

namespace llava::text {
namespace {

std::vector<std::string> sentences() {
  std::vector<std::string> lines;
  for (const char* color : {"red", "green", "blue"})
    for (const char* shape : {"circle", "square", "triangle"})
      lines.push_back(std::string("What color is the ") + shape + "? It is " + color + ".");
  return lines;
}

TEST(Vocabulary, TrainedModelLearnsWholeWordsAndKeepsEveryByte) {
  const support::TemporaryFolder folder;
  const auto model = train_vocabulary(sentences(), 340);
  EXPECT_EQ(model, train_vocabulary(sentences(), 340));  // the same lines give the same bytes
  save_tokenizer(folder.path(), model);
  const auto tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.ids("the circle").size(), 2u);
  const std::string strange = "na\u00efve \u4f60 \U0001F600\n";
  EXPECT_EQ(tokenizer.decode(tokenizer.ids(strange)), strange);
  EXPECT_EQ(tokenizer.special("<image>"), 340);
  EXPECT_EQ(tokenizer.special("<pad>"), 341);
  EXPECT_EQ(tokenizer.size(), 342);
}

TEST(Vocabulary, TextAfterAPictureBeginsAsATextOfItsOwn) {
  const support::TemporaryFolder folder;
  save_tokenizer(folder.path(), train_vocabulary(sentences(), 340));
  const auto tokenizer = Tokenizer::load(folder.path());
  const auto ids = tokenizer.ids("the circle");
  EXPECT_EQ(tokenizer.ids("<image>the circle").size(), 1 + ids.size());
}

TEST(Vocabulary, CharacterModelNeedsNoText) {
  const support::TemporaryFolder folder;
  save_tokenizer(folder.path(), character_vocabulary());
  const auto tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.size(), 356);
  EXPECT_EQ(tokenizer.ids("Hi!").size(), 4u);  // with the dummy prefix
  EXPECT_EQ(tokenizer.bos(), 1);
  EXPECT_EQ(tokenizer.eos(), 2);
  for (const char* text : {"a  b", "x=~y", "\u00e9\t1"})
    EXPECT_EQ(tokenizer.decode(tokenizer.ids(text)), text);
}

TEST(Vocabulary, SizeThatDoesNotFitIsNamed) {
  const auto small = support::error_of(Fault::usage, [] { train_vocabulary(sentences(), 262); });
  EXPECT_THAT(small, testing::HasSubstr("262"));
  const auto large = support::error_of(Fault::usage, [] { train_vocabulary(sentences(), 9000); });
  EXPECT_THAT(large, testing::HasSubstr("9000"));
}

}  // namespace
}  // namespace llava::text
