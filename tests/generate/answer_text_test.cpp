#include "llava/generate/answer_text.h"

#include "scripted.h"

#include <gmock/gmock.h>

#include <cctype>
#include <numeric>

namespace llava::generate {
namespace {

const auto& tokenizer = llama_tokenizer;

/// The pieces that streaming shows for ids.
struct Shown {
  std::vector<std::string> pieces;
  std::string all;
  bool stopped;
  std::size_t before;
  bool between;
};

Shown show(const std::vector<std::int64_t>& ids, std::vector<std::string> stops) {
  AnswerText text(tokenizer(), std::move(stops));
  Shown shown;
  for (const auto id : ids) shown.pieces.push_back(text.push(id));
  shown.pieces.push_back(text.finish());
  shown.all = std::accumulate(shown.pieces.begin(), shown.pieces.end(), std::string());
  EXPECT_EQ(shown.all, text.text());
  shown.stopped = text.stopped();
  shown.before = text.tokens_before_stop();
  shown.between = text.stop_is_between_tokens();
  return shown;
}

/// Llama's byte tokens, so that any string is split everywhere.
std::vector<std::int64_t> letters(const std::string& text) {
  std::vector<std::int64_t> ids;
  for (const char c : text) ids.push_back(3 + static_cast<unsigned char>(c));
  return ids;
}

bool is_utf8(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const std::size_t length = byte < 0x80 ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    if (byte >= 0x80 && byte < 0xC0) return false;
    for (std::size_t k = 1; k < length; ++k)
      if (i + k >= text.size() || (static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80)
        return false;
    i += length;
  }
  return true;
}

TEST(AnswerText, StopStringSplitOverTokensIsNeverShown) {
  const auto shown = show(letters("yes###Human:no"), {"###"});
  EXPECT_EQ(shown.all, "yes");
  EXPECT_TRUE(shown.stopped);
  EXPECT_EQ(shown.before, 3u);
  EXPECT_TRUE(shown.between);
  for (const auto& piece : shown.pieces) EXPECT_EQ(piece.find('#'), std::string::npos) << piece;
}

TEST(AnswerText, WhatOnlyBeganAsAStopStringIsShown) {
  EXPECT_EQ(show(letters("a##b"), {"###"}).all, "a##b");
  const auto shown = show(letters("a##"), {"###"});
  EXPECT_EQ(shown.all, "a##");  // held back until the end
  EXPECT_FALSE(shown.stopped);
  EXPECT_EQ(shown.before, 3u);
}

TEST(AnswerText, TheEarliestOfSeveralStopStringsEndsIt) {
  EXPECT_EQ(show(letters("abcdef"), {"ef", "cd", ""}).all, "ab");
  EXPECT_EQ(show(letters("aabaabx"), {"aabx"}).all, "aab");  // a prefix that begins again
}

TEST(AnswerText, SaysWhetherAStopStringBeginsInsideAToken) {
  const auto ids = tokenizer().ids("It is redish");
  const auto shown = show(ids, {"dish"});
  EXPECT_EQ(shown.all, "It is re");
  EXPECT_FALSE(shown.between);
  EXPECT_LT(shown.before, ids.size());
}

TEST(AnswerText, NeverShowsHalfACharacter) {
  const std::string text = "caf\u00e9 \u732b \U0001F408 \U0001F9D1\u200D\U0001F680!";
  const auto ids = tokenizer().ids(text);
  const auto shown = show(ids, {"zzz"});
  EXPECT_EQ(shown.all, text);
  EXPECT_GT(ids.size(), 10u);  // bytes: the characters are not in the vocabulary
  for (const auto& piece : shown.pieces) EXPECT_TRUE(is_utf8(piece)) << piece;
}

TEST(AnswerText, AnUnfinishedCharacterEndsAsReplacement) {
  auto ids = tokenizer().ids("\U0001F408");
  ids.pop_back();
  const auto shown = show(ids, {});
  EXPECT_TRUE(is_utf8(shown.all));
  EXPECT_NE(shown.all.find("\uFFFD"), std::string::npos);
}

TEST(AnswerText, LeavesOutWhiteSpaceAroundTheAnswerOnly) {
  const auto shown = show(letters("\n  a \n b \n"), {});
  EXPECT_EQ(shown.all, "a \n b");
  for (const auto& piece : shown.pieces) {
    const bool ends_in_space = !piece.empty() && std::isspace(piece.back());
    EXPECT_FALSE(ends_in_space) << piece;
  }
}

TEST(AnswerText, LeavesOutControlTokens) {
  auto ids = tokenizer().ids("cat");
  ids.insert(ids.begin(), 1);
  ids.push_back(2);
  EXPECT_EQ(show(ids, {}).all, "cat");
}

}  // namespace
}  // namespace llava::generate
