#include "llava/text/tokenizer.h"

#include "folder.h"
#include "llava/base/config.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::text {
namespace {

using Ids = std::vector<std::int64_t>;

const Json& vectors() {
  static const Json json = read_json(LLAVA_GOLDEN "/vectors.json");
  return json;
}

const Files kImageAndPad = {{"added_tokens.json", R"({"<image>": 32000, "<pad>": 32001})"}};

Ids with_bos(const Tokenizer& tokenizer, const std::string& text) {
  auto ids = tokenizer.ids(text);
  ids.insert(ids.begin(), *tokenizer.bos());
  return ids;
}

/// Source: LLaVA 1.2.2, mm_utils.py, tokenizer_image_token.
Ids with_images(const Tokenizer& tokenizer, const std::string& text) {
  Ids ids = {*tokenizer.bos()};
  for (std::size_t at = 0;;) {
    const auto mark = text.find("<image>", at);
    const auto chunk = tokenizer.ids(text.substr(at, mark - at));
    ids.insert(ids.end(), chunk.begin(), chunk.end());
    if (mark == std::string::npos) return ids;
    ids.push_back(-200);
    at = mark + 7;
  }
}

TEST(Tokenizer, EncodesEveryVectorInEverySpacing) {
  const Folder original, hugging_face(kImageAndPad);
  const struct {
    const Folder& folder;
    Spacing spacing;
    const char* column;
    const char* image_column;
  } kCases[] = {
      {original, Spacing::legacy, "orig_slow_legacy", "llava_image_token_legacy"},
      {original, Spacing::first_segment, "orig_slow_nonlegacy", "llava_image_token_nonlegacy"},
      {original, Spacing::first_segment_431, "orig_slow_nonlegacy_v431",
       "llava_image_token_nonlegacy_v431"},
      {hugging_face, Spacing::legacy, "hf_slow_legacy", nullptr},
      {hugging_face, Spacing::first_segment, "hf_slow_nonlegacy", nullptr},
  };
  for (const auto& [folder, spacing, column, image_column] : kCases) {
    const auto tokenizer = folder.load(spacing);
    EXPECT_EQ(tokenizer.spacing(), spacing);
    for (const auto& row : vectors()["encode"]) {
      const auto text = row["text"].get<std::string>();
      EXPECT_EQ(with_bos(tokenizer, text), row[column].get<Ids>()) << column << " " << row["name"];
      if (!image_column) continue;
      EXPECT_EQ(with_images(tokenizer, text), row[image_column].get<Ids>())
          << image_column << " " << row["name"];
    }
  }
}

TEST(Tokenizer, LiteralTextIsWhatSentencePieceMakesOfIt) {
  const auto tokenizer = Folder(kImageAndPad).load(Spacing::legacy);
  for (const auto& row : vectors()["encode"]) {
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(tokenizer.ids(text, {{0, text.size()}}), row["sp_ids"].get<Ids>()) << row["name"];
  }
}

TEST(Tokenizer, ReproducesPublishedPrompts) {
  for (const auto& row : vectors()["public_gold"]) {
    const bool split = row["name"] == "llava_v1_prompt_log";
    const auto added = split ? Json(Json::object()) : row["added"];
    const Folder folder(Files{{"added_tokens.json", json_text(added)}});
    const auto tokenizer =
        folder.load(row["mode"] == "nonlegacy" ? Spacing::first_segment : Spacing::legacy);
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(split ? with_images(tokenizer, text) : with_bos(tokenizer, text),
              row["ids"].get<Ids>())
        << row["name"];
  }
}

TEST(Tokenizer, StreamsEveryVector) {
  const auto tokenizer = Folder(kImageAndPad).load();
  for (const auto& row : vectors()["decode"]) {
    StreamDecoder decoder(tokenizer);
    std::vector<std::string> deltas;
    for (const auto id : row["ids"].get<Ids>()) deltas.push_back(decoder.push(id));
    EXPECT_EQ(deltas, row["stream_deltas"].get<std::vector<std::string>>()) << row["name"];
    EXPECT_EQ(decoder.finish(), row["stream_final_flush"].get<std::string>()) << row["name"];
    EXPECT_EQ(tokenizer.decode(row["ids"].get<Ids>()), row["text"].get<std::string>())
        << row["name"];
  }
}

}  // namespace
}  // namespace llava::text
