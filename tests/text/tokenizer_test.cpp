#include "llava/text/tokenizer.h"

#include "folder.h"
#include "llava/base/config.h"
#include "support/expect_error.h"
#include "train.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <random>

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

TEST(Tokenizer, DecodesWithControlTokensWhenAsked) {
  const auto tokenizer = Folder(kImageAndPad).load();
  EXPECT_EQ(tokenizer.decode({1, 15043, 3186, 2}, false), "<s> Hello world</s>");
  EXPECT_EQ(tokenizer.decode({15043, 0, 3186}, false), "Hello<unk> world");
  EXPECT_EQ(tokenizer.decode({15043, 40000, -200, 3186}), "Hello world");
  EXPECT_EQ(tokenizer.piece(15043), "\u2581Hello");
  EXPECT_EQ(tokenizer.piece(13), "<0x0A>");
  EXPECT_EQ(tokenizer.piece(-200), "<image>");
}

// ── Byte ranges ──────────────────────────────────────────────────────────────────────────────────

TEST(Tokenizer, RangesSayWhichBytesATokenCameFrom) {
  const auto& tokenizer = llama(Spacing::legacy);
  const auto tokens = tokenizer.encode("Hello</s>\U0001F600 a");
  const struct {
    std::int64_t id;
    std::size_t begin, end;
  } kWant[] = {{15043, 0, 5}, {2, 5, 9},     {29871, 9, 9}, {243, 9, 10},
               {162, 10, 11}, {155, 11, 12}, {131, 12, 13}, {263, 13, 15}};
  ASSERT_EQ(tokens.size(), std::size(kWant));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(tokens[i].id, kWant[i].id);
    EXPECT_EQ(tokens[i].bytes.begin, kWant[i].begin) << i;
    EXPECT_EQ(tokens[i].bytes.end, kWant[i].end) << i;
  }
}

/// Texts of pieces, odd characters, spaces and bytes that are no UTF-8.
std::string random_text(std::mt19937& random, const Tokenizer& tokenizer) {
  std::string text;
  for (std::size_t i = 0, n = random() % 12; i < n; ++i) {
    switch (random() % 6) {
      case 0: text += static_cast<char>(random() % 256); break;
      case 1: text += std::string(random() % 5, ' '); break;
      case 2: text += "\u0e01\u4e00\U00020000\U0001F600\u2581\u2596"; break;
      case 3: text += std::string(random() % 40, "a=-\n."[random() % 5]); break;
      default: text += tokenizer.piece(static_cast<std::int64_t>(random() % 32000)); break;
    }
  }
  return text;
}

TEST(Tokenizer, RangesCoverTheTextInOrder) {
  for (const auto spacing : {Spacing::legacy, Spacing::first_segment, Spacing::first_segment_431}) {
    const auto& tokenizer = llama(spacing);
    std::mt19937 random(3);
    for (int i = 0; i < 300; ++i) {
      const auto text = random_text(random, tokenizer);
      std::size_t at = 0;
      for (const auto& token : tokenizer.encode(text)) {
        // Only the bytes of U+FFFD, which stand for one bad byte, share a range.
        EXPECT_TRUE(token.bytes.begin == at || token.bytes.end == at) << text;
        at = token.bytes.end;
      }
      EXPECT_EQ(at, text.size());
    }
  }
}

// ── The library as oracle ────────────────────────────────────────────────────────────────────────

Ids sentencepiece_ids(const sentencepiece::SentencePieceProcessor& processor,
                      const std::string& text) {
  std::vector<int> ids;
  EXPECT_TRUE(processor.Encode(text, &ids).ok());
  return {ids.begin(), ids.end()};
}

TEST(Tokenizer, RandomTextIsWhatSentencePieceMakesOfIt) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.LoadFromSerializedProto(Folder::llama_model()).ok());
  const auto& tokenizer = llama(Spacing::legacy);
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    const auto text = random_text(random, tokenizer);
    EXPECT_EQ(tokenizer.ids(text, {{0, text.size()}}), sentencepiece_ids(processor, text)) << text;
  }
}

TEST(Tokenizer, TrainedModelsOfOtherSettingsEqualSentencePiece) {
  std::vector<std::string> lines;
  for (int i = 0; i < 40; ++i) {
    lines.push_back("line " + std::to_string(i * 37) + " of text, na\u00efve \u4f60\u597d");
  }
  // Without byte fallback unknown characters are <unk>, a run of them one; user-defined pieces are
  // taken whole wherever they stand.
  const std::vector<std::map<std::string, std::string>> kSettings = {
      {{"byte_fallback", "false"}, {"vocab_size", "60"}},
      {{"user_defined_symbols", "li,\u2581of\u2581,ext,12"}, {"vocab_size", "360"}},
      {{"add_dummy_prefix", "false"}, {"vocab_size", "340"}},
  };
  for (const auto& extra : kSettings) {
    const auto model = train(lines, extra);
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.LoadFromSerializedProto(model).ok());
    const auto tokenizer = Folder(Files{{"tokenizer.model", model}}).load(Spacing::legacy);
    std::mt19937 random(2);
    for (int i = 0; i < 300; ++i) {
      std::string text;
      for (std::size_t k = 0, n = random() % 10; k < n; ++k) {
        const auto& line = lines[random() % lines.size()];
        text += line.substr(random() % line.size(), random() % 9);
        if (random() % 4 == 0) text += "\u0e01\u0e02 li of \xff";
      }
      EXPECT_EQ(tokenizer.ids(text), sentencepiece_ids(processor, text)) << text;
    }
  }
}

// ── Control tokens ───────────────────────────────────────────────────────────────────────────────

TEST(Tokenizer, NoPieceInAPersonsWordsBecomesAControlToken) {
  const auto tokenizer = Folder(kImageAndPad).load(Spacing::first_segment);
  const auto specials = [&](const std::string& text, const std::vector<Range>& literal) {
    const auto ids = tokenizer.ids(text, literal);
    return std::count_if(ids.begin(), ids.end(),
                         [&](std::int64_t id) { return tokenizer.is_special(id); });
  };
  for (std::int64_t id = 0; id < tokenizer.size(); ++id) {
    const auto piece = tokenizer.piece(id);
    for (const auto& words : {piece, piece + piece, "<" + piece + ">", "a" + piece + " b",
                              "</" + piece, piece + "</s>", "<s>" + piece, "\n" + piece + "s>"}) {
      ASSERT_EQ(specials(words, {{0, words.size()}}), 0) << words;
    }
    // Nor together with the template around the words, which keeps its own.
    const auto framed = "</s><" + piece + "></s>";
    ASSERT_EQ(specials(framed, {{5, 5 + piece.size()}}), 2) << framed;
  }
}

TEST(Tokenizer, AddedTokensAreFoundOutsideLiteralRangesOnly) {
  const auto tokenizer = Folder(kImageAndPad).load(Spacing::legacy);
  const std::string text = "</s> a</s>b <image></s>";
  const auto ids = tokenizer.ids(text, {{4, 12}});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 32000), 1);
  // One byte of a person's is enough to keep it a text.
  for (std::size_t at = 0; at < 4; ++at) {
    EXPECT_EQ(tokenizer.ids("</s>", {{at, at + 1}}), (Ids{1533, 29879, 29958})) << at;
  }
}

TEST(Tokenizer, MarkupOfTheModelFileIsControlTooWhateverItsKind) {
  const auto model = train({"text of text", "more text"},
                           {{"user_defined_symbols", "<|im_end|>"}, {"vocab_size", "300"}});
  const auto tokenizer = Folder(Files{{"tokenizer.model", model}}).load();
  const auto id = tokenizer.ids("<|im_end|>").back();
  EXPECT_EQ(tokenizer.piece(id), "<|im_end|>");
  const auto literal = tokenizer.ids("<|im_end|>", {{0, 10}});
  EXPECT_EQ(std::count(literal.begin(), literal.end(), id), 0);
}

// ── What the folder's files say ──────────────────────────────────────────────────────────────────

TEST(Tokenizer, SettingsComeFromTheFolder) {
  const auto plain = Folder().load();
  EXPECT_EQ(plain.spacing(), Spacing::legacy);
  EXPECT_TRUE(plain.adds_bos());
  EXPECT_EQ(plain.bos(), 1);
  EXPECT_EQ(plain.eos(), 2);
  EXPECT_EQ(plain.unk(), 0);
  EXPECT_EQ(plain.pad(), std::nullopt);
  EXPECT_EQ(plain.size(), 32000);
  EXPECT_EQ(plain.max_length(), 0);

  const auto configured =
      Folder(Files{{"tokenizer_config.json",
                    R"({"legacy": false, "add_bos_token": false, "model_max_length": 2048,
                        "pad_token": "[PAD]", "bos_token": {"content": "<s>", "lstrip": false}})"}})
          .load();
  EXPECT_EQ(configured.spacing(), Spacing::first_segment);
  EXPECT_FALSE(configured.adds_bos());
  EXPECT_EQ(configured.max_length(), 2048);
  EXPECT_EQ(configured.pad(), 32000);  // in no table: the next id
  EXPECT_EQ(configured.special("[PAD]"), 32000);

  const auto decoder =
      Folder(Files{{"tokenizer_config.json",
                    R"({"model_max_length": 1e30, "pad_token": "<pad>", "added_tokens_decoder": {
                        "0": {"content": "<unk>", "special": true},
                        "32000": {"content": "<image>", "special": true},
                        "32001": {"content": "<pad>", "special": true},
                        "32002": {"content": "box", "special": false}}})"},
                   {"added_tokens.json", R"({"<ignored>": 32005})"}})
          .load();
  EXPECT_EQ(decoder.max_length(), 0);
  EXPECT_EQ(decoder.pad(), 32001);
  EXPECT_EQ(decoder.size(), 32003);
  EXPECT_EQ(decoder.special("<ignored>"), std::nullopt);
  // A word that someone added is a token in a person's words too, and decodes.
  EXPECT_EQ(decoder.ids("box", {{0, 3}}), (Ids{32002}));
  EXPECT_EQ(decoder.decode({32002, 32000}), "box");
  EXPECT_FALSE(decoder.is_special(32002));
}

TEST(Tokenizer, EmptyNamesOfEarlyLlamaFoldersMeanTheModelsOwn) {
  const auto tokenizer =
      Folder(Files{{"special_tokens_map.json", R"({"bos_token": "", "eos_token": ""})"},
                   {"tokenizer_config.json", R"({"bos_token": "", "unk_token": ""})"}})
          .load();
  EXPECT_EQ(tokenizer.bos(), 1);
  EXPECT_EQ(tokenizer.eos(), 2);
  EXPECT_EQ(tokenizer.unk(), 0);
}

TEST(Tokenizer, SpacingFollowsTokenizerJsonWhenTheConfigIsSilent) {
  const auto first = read_file(LLAVA_GOLDEN "/pieces_first/tokenizer.json");
  const auto legacy = read_file(LLAVA_GOLDEN "/pieces_legacy/tokenizer.json");
  EXPECT_EQ(Folder(Files{{"tokenizer.json", first}}).load().spacing(), Spacing::first_segment);
  EXPECT_EQ(Folder(Files{{"tokenizer.json", legacy}}).load().spacing(), Spacing::legacy);
  EXPECT_EQ(
      Folder(Files{{"tokenizer.json", first}, {"tokenizer_config.json", R"({"legacy": true})"}})
          .load()
          .spacing(),
      Spacing::legacy);
}

// ── Bad files ────────────────────────────────────────────────────────────────────────────────────

std::string load_error(const Files& files) {
  return support::error_of(Fault::data, [&] { Folder(files).load(); });
}

TEST(Tokenizer, BadFilesAreNamed) {
  using testing::HasSubstr;
  const support::TemporaryFolder empty;
  EXPECT_THAT(support::error_of(Fault::data, [&] { Tokenizer::load(empty.path()); }),
              HasSubstr("holds neither tokenizer.model nor tokenizer.json"));
  EXPECT_THAT(load_error({{"tokenizer.model", "hello"}}),
              HasSubstr("tokenizer.model: byte 2 has wire type 4: not a SentencePiece model"));
  EXPECT_THAT(load_error({{"tokenizer.model", Folder::llama_model().substr(0, 400000)}}),
              HasSubstr("runs past the end"));
  EXPECT_THAT(load_error({{"tokenizer.model", std::string("\x0a\x02\x12\x00", 4)}}),
              HasSubstr("byte 2"));
  const auto twice = Folder::llama_model() + std::string(
                                                 "\x0a\x03\x0a\x01"
                                                 "a",
                                                 5);
  EXPECT_THAT(load_error({{"tokenizer.model", twice}}), HasSubstr("(\"a\") appears twice"));
  const auto unigram =
      train({"text of text", "more text"}, {{"model_type", "unigram"}, {"vocab_size", "275"}});
  EXPECT_THAT(load_error({{"tokenizer.model", unigram}}),
              HasSubstr("the model type is unigram, only bpe is supported"));
  const auto nfkc = train({"text of text", "more text"},
                          {{"normalization_rule_name", "nfkc"}, {"vocab_size", "275"}});
  EXPECT_THAT(load_error({{"tokenizer.model", nfkc}}), HasSubstr("normalizer changes the text"));

  EXPECT_THAT(load_error({{"tokenizer_config.json", "{\"legacy\": 1}"}}),
              HasSubstr("tokenizer_config.json: \"legacy\" must be true or false"));
  EXPECT_THAT(load_error({{"tokenizer_config.json", "{\"legacy\": "}}),
              HasSubstr("tokenizer_config.json:1:"));
  EXPECT_THAT(load_error({{"added_tokens.json", "{\"<image>\": -1}"}}),
              HasSubstr("added_tokens.json: token id -1"));
  EXPECT_THAT(load_error({{"added_tokens.json", "{\"<image>\": 9999999999}"}}),
              HasSubstr("token id 9999999999"));
  EXPECT_THAT(load_error({{"added_tokens.json", "{\"\": 32000}"}}),
              HasSubstr("a token of 0 bytes"));
  EXPECT_THAT(load_error({{"special_tokens_map.json", "{\"bos_token\": 5}"}}),
              HasSubstr("\"bos_token\": expected a token's text"));
}

}  // namespace
}  // namespace llava::text
