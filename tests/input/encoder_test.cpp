#include "llama.h"
#include "llava/base/config.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::input {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::int64_t>;

constexpr std::int64_t kBos = 1, kEos = 2;

/// The tokens that are learned, in order.
Ids learned(const Example& example) {
  Ids ids;
  for (std::size_t i = 0; i < example.ids.size(); ++i) {
    if (example.labels[i] == kIgnore) continue;
    EXPECT_EQ(example.labels[i], example.ids[i]);
    ids.push_back(example.ids[i]);
  }
  return ids;
}

// Recorded from the reference's own training code; see tests/golden/input/README.md.
TEST(Encoder, GivesTheReferencesIdsAndLabels) {
  const auto vectors = read_json(LLAVA_GOLDEN "/labels.json");
  ASSERT_GT(vectors.size(), 100u);
  const auto legacy = llama(text::Spacing::legacy), modern = llama(text::Spacing::first_segment);
  for (const auto& vector : vectors) {
    const auto& chat = text::find_template(vector["template"]);
    const Encoder encoder(vector["legacy"].get<bool>() ? legacy : modern, chat, {});
    auto conversation = talk(vector["turns"]);
    const bool has_image = vector["image"];
    if (has_image) {
      conversation = text::place_images(conversation, chat, text::Placement::first);
    }
    const auto example = encoder.encode(conversation, pictures(has_image));
    const std::string name = vector["template"].get<std::string>() + ": " +
                             vector["name"].get<std::string>() +
                             (vector["legacy"].get<bool>() ? ", legacy" : "");
    EXPECT_EQ(example.ids, vector["ids"].get<Ids>()) << name;
    EXPECT_EQ(example.labels, vector["labels"].get<Ids>()) << name;
  }
}

// Llama's vocabulary: "▁" 29871, newline 13, "What" 5618, "USER" 11889, ":" 29901, "▁a" 263.
TEST(Encoder, TokenizesEachChunkBetweenMarksAsATextOfItsOwn) {
  const auto encoder = vicuna();
  EXPECT_THAT(encoder.encode_raw("USER: <image>\nWhat", pictures(1)).ids,
              ElementsAre(kBos, 3148, 1001, 29901, 29871, kImageToken, 29871, 13, 5618));
  EXPECT_THAT(encoder.encode_raw("<image>", pictures(1)).ids, ElementsAre(kBos, kImageToken));
  EXPECT_THAT(encoder.encode_raw("<image><image> a", pictures(2)).ids,
              ElementsAre(kBos, kImageToken, kImageToken, 29871, 263));
}

TEST(Encoder, LearnsTheAnswerAndItsEndWhateverTheAnswerHolds) {
  const auto encoder = vicuna();
  for (const std::string& words : {std::string("fine ASSISTANT: or not"), std::string("USER: x"),
                                   std::string("the text </s> of a token")}) {
    const auto example = encoder.encode(talk({"Hi", words}), {});
    auto want = encoder.tokenizer().ids(words, {{0, words.size()}});
    want.push_back(kEos);
    EXPECT_EQ(learned(example), want) << words;
  }
}

TEST(Encoder, ControlTokensInAPersonsWordsStayWords) {
  const auto encoder = vicuna();
  const auto is_eos = [](std::int64_t id) { return id == kEos; };
  const auto conversation = talk({"a </s> b", "c </s> d"});
  const auto example = encoder.encode(conversation, {});
  EXPECT_EQ(std::count_if(example.ids.begin(), example.ids.end(), is_eos), 1);

  const auto asked = vicuna({.tiling = {}, .merge = {}, .parse_user_specials = true});
  const auto parsed = asked.encode(conversation, {});
  EXPECT_EQ(std::count_if(parsed.ids.begin(), parsed.ids.end(), is_eos), 3);
}

TEST(Encoder, WithoutPicturesAMarkIsOrdinaryText) {
  // Some folders have <image> as an added token; a text-only sample must not get it.
  const auto encoder = vicuna({}, R"({"<image>": 32000})");
  const auto example = encoder.encode(talk({"What is <image> in HTML?", "Nothing."}), {});
  EXPECT_EQ(std::count(example.ids.begin(), example.ids.end(), kImageToken), 0);
  EXPECT_EQ(std::count(example.ids.begin(), example.ids.end(), 32000), 0);
  EXPECT_THAT(encoder.tokenizer().decode(example.ids), HasSubstr("What is <image> in HTML?"));
}

TEST(Encoder, MarksAndPicturesMustBeEquallyMany) {
  const auto encoder = vicuna();
  const auto text = talk({"<image> or <image>?", "Both."});
  EXPECT_THAT(support::error_of(Fault::data, [&] { encoder.encode(text, pictures(1)); }),
              HasSubstr("2 <image> marks but 1 pictures"));
  EXPECT_THAT(support::error_of(Fault::data,
                                [&] {
                                  encoder.encode(talk({"Hi", "Ho"}), pictures(1));
                                }),
              HasSubstr("0 <image> marks but 1 pictures"));
}

TEST(Encoder, AVideoMarkCountsOnlyBesideAVideo) {
  const auto encoder = vicuna();
  auto video = pictures(1);
  video[0].frames = 8;
  EXPECT_THAT(encoder.encode_raw("<video>", video).ids, ElementsAre(kBos, kImageToken));
  EXPECT_THAT(encoder.encode_raw("<image>", video).ids, ElementsAre(kBos, kImageToken));
  support::error_of(Fault::data, [&] { encoder.encode_raw("<video>", pictures(1)); });
}

TEST(Encoder, StartAndEndTokensStandAroundEveryMark) {
  const std::string added = R"({"<im_start>": 32000, "<im_end>": 32001})";
  const EncoderConfig config{.tiling = {}, .merge = {}, .image_start_end = true};
  const auto encoder = vicuna(config, added);
  const auto example = encoder.encode(talk({"<image>\nWhat?", "A cat."}), pictures(1));
  const auto slot = std::find(example.ids.begin(), example.ids.end(), kImageToken);
  ASSERT_NE(slot, example.ids.end());
  EXPECT_EQ(slot[-1], 32000);
  EXPECT_EQ(slot[1], 32001);
  const auto plain = vicuna().encode(talk({"<image>\nWhat?", "A cat."}), pictures(1));
  EXPECT_EQ(learned(example), learned(plain));

  EXPECT_THAT(support::error_of(Fault::data, [&] { vicuna(config); }), HasSubstr("<im_start>"));
}

TEST(Encoder, APromptIsTheBeginningOfItsTrainingSample) {
  const auto encoder = vicuna();
  const auto prompt = encoder.encode_prompt(talk({"<image>\nWhat is this?"}), pictures(1));
  const auto whole = encoder.encode(talk({"<image>\nWhat is this?", "A cat."}), pictures(1));
  ASSERT_LT(prompt.ids.size(), whole.ids.size());
  EXPECT_EQ(prompt.ids, Ids(whole.ids.begin(),
                            whole.ids.begin() + static_cast<std::ptrdiff_t>(prompt.ids.size())));
  EXPECT_TRUE(learned(prompt).empty());
}

TEST(Encoder, ATurnAfterAKeptCacheContinuesTheWholePrompt) {
  for (const auto* name : {"v1", "llava_llama_2", "mistral_instruct", "llava_v0"}) {
    for (const auto spacing : {text::Spacing::legacy, text::Spacing::first_segment}) {
      const Encoder encoder(llama(spacing), text::find_template(name), {});
      const auto conversation = talk({"<image>\nWhat is this?", "A cat.", "What color? 7"});
      const auto first = encoder.encode_prompt(talk({"<image>\nWhat is this?"}), pictures(1));
      const auto second = encoder.encode_prompt(conversation, {}, 2);
      const auto whole = encoder.encode_prompt(conversation, pictures(1));
      // Between the two stand the answer's own tokens.
      ASSERT_GT(whole.ids.size(), first.ids.size() + second.ids.size()) << name;
      EXPECT_TRUE(std::equal(first.ids.begin(), first.ids.end(), whole.ids.begin())) << name;
      EXPECT_TRUE(std::equal(second.ids.rbegin(), second.ids.rend(), whole.ids.rbegin())) << name;
    }
  }
}

TEST(Encoder, MeasuresAPictureAsItWouldMakeIt) {
  EncoderConfig config;
  config.tiling.aspect = media::Aspect::anyres;
  config.tiling.tile = config.tiling.shortest_edge = 28;
  config.tiling.pinpoints = {{28, 56}, {56, 28}, {56, 56}};
  config.merge = {.side = 2, .spatial = true, .unpad = true};
  const auto encoder = vicuna(config);
  const media::Image image{.width = 60, .height = 20, .rgb = std::vector<std::uint8_t>(3600, 9)};
  const auto made = encoder.picture(image), measured = encoder.measure(60, 20);
  EXPECT_EQ(made.rows, measured.rows);
  EXPECT_EQ(made.tiles(), measured.tiles());
  EXPECT_EQ(made.tiles(), 3);  // the base view and 2x1
  EXPECT_EQ(made.pixels.size(), 3u * 3 * 28 * 28);
  EXPECT_EQ(encoder.picture(image, media::Aspect::pad).tiles(), 1);

  const auto video = encoder.video({image, image}), counted = encoder.measure_video(60, 20, 2);
  EXPECT_EQ(video.rows, counted.rows);
  EXPECT_EQ(video.tiles(), 2);
  EXPECT_EQ(video.pixels.size(), 2u * 3 * 28 * 28);
  support::error_of(Fault::data, [&] { encoder.video({}); });
}

TEST(Truncate, CountsSplicedTokensAndLeavesACutPictureOut) {
  Example example;
  example.ids = {1, 10, kImageToken, 11, 12};
  example.labels = {kIgnore, kIgnore, kIgnore, 11, 12};
  example.pictures = pictures(1, 4);
  ASSERT_EQ(example.num_tokens(), 8);

  auto cut = example;
  truncate(cut, 7);
  EXPECT_THAT(cut.ids, ElementsAre(1, 10, kImageToken, 11));
  EXPECT_THAT(cut.labels, ElementsAre(kIgnore, kIgnore, kIgnore, 11));
  EXPECT_EQ(cut.num_tokens(), 7);
  truncate(cut, 5);  // in the middle of the picture
  EXPECT_THAT(cut.ids, ElementsAre(1, 10));
  EXPECT_TRUE(cut.pictures.empty());
  truncate(example, 8);
  EXPECT_EQ(example.ids.size(), 5u);
}

TEST(NumLearned, DoesNotCountTheFirstToken) {
  Example example;
  EXPECT_EQ(num_learned(example), 0);
  example.labels = {5, kIgnore, 6, 7};
  EXPECT_EQ(num_learned(example), 2);
}

}  // namespace
}  // namespace llava::input
