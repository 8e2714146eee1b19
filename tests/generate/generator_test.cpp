#include "llava/generate/generator.h"

#include "scripted.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>

namespace llava::generate {
namespace {

using support::error_of;
using torch::Tensor;

input::Picture picture(std::int64_t width, std::int64_t height, std::uint8_t seed,
                       const Assistant& assistant) {
  media::Image image{width, height, {}};
  for (std::int64_t i = 0; i < 3 * width * height; ++i)
    image.rgb.push_back(static_cast<std::uint8_t>(seed + i * 37));
  return assistant.encoder.picture(image);
}

input::Example example(const Assistant& assistant, const std::string& text,
                       std::vector<input::Picture> pictures = {}) {
  text::Conversation conversation;
  conversation.messages = {{text::Role::user, with_marks(text, pictures)}};
  return assistant.encoder.encode_prompt(conversation, std::move(pictures));
}

Answer answer_one(Assistant& assistant, const input::Example& prompt, const GenerateConfig& config,
                  const OnText& on_text = {}) {
  return answer(assistant, {prompt}, config, {0}, on_text).at(0);
}

/// Every token's logits by a forward without caches over prompt and answer.
Tensor full_logits(Assistant& assistant, const input::Example& prompt,
                   const std::vector<std::int64_t>& ids) {
  torch::NoGradGuard no_grad;
  const auto embeds = embed(assistant, followed_by(prompt, ids));
  return assistant.model->logits(assistant.model->llama->forward(embeds, {0, embeds.size(0)}));
}

TEST(Generator, CachedDecodeEqualsFullForward) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto prompt = example(assistant, "What is it?", {picture(40, 30, 1, assistant)});
  const std::vector<std::int64_t> ids{450, 6635, 338, 2654, 29889};

  const auto want = full_logits(assistant, prompt, ids);  // [T, V]
  auto row = make_row(assistant, want.size(0), 0, 0);
  prefill(assistant, row, embed(assistant, prompt), prompt.ids);
  const auto first = want.size(0) - static_cast<std::int64_t>(ids.size()) - 1;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto at = first + static_cast<std::int64_t>(i);
    // fp32: the same sums in another order
    EXPECT_LT((row.logits - want[at]).abs().max().item<float>(), 1e-4) << i;
    EXPECT_EQ(row.logits.argmax().item<std::int64_t>(), want[at].argmax().item<std::int64_t>());
    decode(assistant, {&row}, {ids[i]}, Batching::exact);
  }
}

TEST(Generator, GreedyAnswerIsTheArgmaxOfFullForwards) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto prompt = example(assistant, "What is it?", {picture(40, 30, 1, assistant)});
  const auto got = answer_one(assistant, prompt, {.max_new_tokens = 12, .ignore_eos = true});
  std::vector<std::int64_t> want;
  while (want.size() < 12)
    want.push_back(full_logits(assistant, prompt, want)[-1].argmax().item<std::int64_t>());
  EXPECT_EQ(got.ids, want);
  EXPECT_EQ(got.finish, Finish::length);
}

TEST(Generator, EndsAtTheStopTokenAndTellsWhy) {
  const auto words = llama_tokenizer().ids("A red cat");
  auto script = words;
  script.push_back(2);
  auto assistant = make_assistant(scripted_model(kColon, script));
  const auto prompt = example(assistant, "What?");

  const auto got = answer_one(assistant, prompt, {});
  EXPECT_EQ(got.text, "A red cat");
  EXPECT_EQ(got.ids, script);
  EXPECT_EQ(got.kept, words.size());
  EXPECT_EQ(got.finish, Finish::stop);

  const auto cut = answer_one(assistant, prompt, {.max_new_tokens = 2});
  EXPECT_EQ(cut.text, "A red");
  EXPECT_EQ(cut.finish, Finish::length);

  const auto none = answer_one(assistant, prompt, {.max_new_tokens = 0});
  EXPECT_EQ(none.text, "");
  EXPECT_TRUE(none.ids.empty());
  EXPECT_EQ(none.finish, Finish::length);

  const auto on = answer_one(assistant, prompt, {.max_new_tokens = 9, .ignore_eos = true});
  EXPECT_EQ(on.ids.size(), 9u);
  EXPECT_EQ(on.finish, Finish::length);
}

TEST(Generator, EndsAtTheTemplatesStopStringWithoutShowingIt) {
  const auto script = llama_tokenizer().ids("Blue.###Human next");
  auto assistant = make_assistant(scripted_model(kColon, script), "llava_v0");
  std::string streamed;
  const auto got = answer_one(assistant, example(assistant, "What?"), {.max_new_tokens = 20},
                              [&](std::string_view text) {
                                EXPECT_EQ(text.find('#'), text.npos);
                                streamed += text;
                                return true;
                              });
  EXPECT_EQ(got.text, "Blue.");
  EXPECT_EQ(streamed, got.text);
  EXPECT_EQ(got.finish, Finish::stop);
}

TEST(Generator, StopsWhenTheListenerSaysSo) {
  const auto script = llama_tokenizer().ids("one two three four");
  auto assistant = make_assistant(scripted_model(kColon, script));
  std::string streamed;
  const auto got = answer_one(assistant, example(assistant, "Count"), {.max_new_tokens = 4},
                              [&](std::string_view text) {
                                streamed += text;
                                return streamed.size() < 5;
                              });
  EXPECT_EQ(got.finish, Finish::cancelled);
  EXPECT_EQ(got.text, "one two");
}

TEST(Generator, SamplesByItsSeed) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto prompt = example(assistant, "What is it?");
  GenerateConfig config{.sampling = {.temperature = 1, .top_p = 0.9}, .max_new_tokens = 8};
  const auto first = answer_one(assistant, prompt, config).ids;
  EXPECT_EQ(answer_one(assistant, prompt, config).ids, first);
  config.seed = 43;
  EXPECT_NE(answer_one(assistant, prompt, config).ids, first);
}

/// Prompts of different lengths, with and without pictures.
std::vector<input::Example> mixed_prompts(const Assistant& assistant) {
  std::vector<input::Example> prompts;
  for (int i = 0; i < 5; ++i) {
    std::string text = "Question " + std::to_string(i);
    for (int k = 0; k < 3 * i; ++k) text += " and more";
    std::vector<input::Picture> pictures;
    for (int k = 0; k < i % 3; ++k)
      pictures.push_back(picture(30 + 9 * i, 50, static_cast<std::uint8_t>(i + k), assistant));
    prompts.push_back(example(assistant, text, pictures));
  }
  return prompts;
}

void expect_batch_is_invisible(Assistant& assistant, const GenerateConfig& config) {
  const auto prompts = mixed_prompts(assistant);
  const auto together = answer(assistant, prompts, config, {0, 1, 2, 3, 4});
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto alone = answer(assistant, {prompts[i]}, config, {i}).at(0);
    EXPECT_EQ(alone.ids, together[i].ids) << i;
    EXPECT_EQ(alone.text, together[i].text) << i;
  }
}

TEST(Generator, NeighboursInTheBatchAreInvisible) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  expect_batch_is_invisible(assistant, {.max_new_tokens = 10, .ignore_eos = true});
  expect_batch_is_invisible(
      assistant, {.sampling = {.temperature = 1}, .max_new_tokens = 10, .ignore_eos = true});
}

// Wide enough that LibTorch's products for one row and for several round differently.
TEST(Generator, ExactBatchesGiveTheSameBitsInEveryDtype) {
  auto config = wordy_config();
  config.text.hidden_size = 256;
  config.text.intermediate_size = 704;
  config.text.head_dim = 64;
  struct Case {
    torch::ScalarType dtype;
    std::int64_t bits;  // 0: not packed
  };
  for (const auto& [dtype, bits] : {Case{torch::kFloat32, 0},
                                    {torch::kBFloat16, 0},
                                    {torch::kBFloat16, 16},
                                    {torch::kBFloat16, 8},
                                    {torch::kFloat32, 4}}) {
    auto model = test::tiny_model(config, 3, dtype);
    const bool rows_are_independent = bits > 0 && pack_for_answers(model, bits);
    if (bits == 8 || bits == 4) {
      EXPECT_TRUE(rows_are_independent);
    }
    auto assistant = make_assistant(model);
    assistant.rows_are_independent = rows_are_independent;
    if (bits > 0) assistant.token_step = model::make_token_step(model);
    const auto prompts = mixed_prompts(assistant);
    std::vector<Row> rows, alone;
    std::vector<Row*> all;
    for (auto* list : {&rows, &alone})
      for (const auto& prompt : prompts) {
        list->push_back(make_row(assistant, 200, 0, 0));
        prefill(assistant, list->back(), embed(assistant, prompt), prompt.ids);
      }
    for (auto& row : rows) all.push_back(&row);
    for (int step = 0; step < 3; ++step) {
      decode(assistant, all, {5, 6, 7, 8, 9}, Batching::exact);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        decode(assistant, {&alone[i]}, {static_cast<std::int64_t>(5 + i)}, Batching::exact);
        EXPECT_TRUE(torch::equal(rows[i].logits, alone[i].logits))
            << dtype << " " << bits << " bits, row " << i;
      }
    }
  }
}

TEST(Generator, TokensChosenOnTheDeviceAreTheAnswer) {
  const auto answers = [](bool on_device, Batching batching, double temperature) {
    auto assistant = make_assistant(test::tiny_model(wordy_config()));
    if (on_device) assistant.device_step = std::make_shared<model::DeviceStep>(assistant.model);
    std::vector<Row> rows;
    for (const auto& prompt : mixed_prompts(assistant)) {
      rows.push_back(make_row(assistant, 200, 1, rows.size()));
      for (std::int64_t layer = 0; layer < 2; ++layer) {  // as on a GPU
        Tensor(rows.back().cache.keys(layer)).zero_();
        Tensor(rows.back().cache.values(layer)).zero_();
      }
      prefill(assistant, rows.back(), embed(assistant, prompt), prompt.ids);
    }
    std::vector<Row*> pointers;
    for (auto& row : rows) pointers.push_back(&row);
    GenerateConfig config;
    config.max_new_tokens = 12;
    config.batching = batching;
    config.sampling.temperature = temperature;
    std::vector<std::vector<std::int64_t>> found;
    for (const auto& answer : generate(assistant, pointers, config)) found.push_back(answer.ids);
    for (const auto& row : rows) found.push_back(row.seen);
    for (const auto& row : rows) found.push_back({row.cache.length()});
    return found;
  };
  for (const auto batching : {Batching::exact, Batching::fast})
    for (const double temperature : {0.0, 0.7})
      EXPECT_EQ(answers(true, batching, temperature), answers(false, batching, temperature));
}

TEST(Generator, ATiedHeadIsPackedAsAnyOther) {
  auto config = wordy_config();
  config.text.hidden_size = 256;
  config.text.head_dim = 64;
  config.text.intermediate_size = 512;
  config.text.tie_word_embeddings = true;
  for (const std::int64_t bits : {16, 8}) {
    const auto whole = test::tiny_model(config, 3, torch::kBFloat16);
    auto packed = test::tiny_model(config, 3, torch::kBFloat16);
    const bool rows_are_independent = pack_for_answers(packed, bits);
    if (bits == 16 && !nn::prefers_packed_bfloat16()) continue;
    EXPECT_TRUE(rows_are_independent);
    ASSERT_TRUE(packed->lm_head && packed->lm_head->packed);
    EXPECT_EQ(packed->named_parameters().find("lm_head.weight"), nullptr);
    torch::NoGradGuard no_grad;
    const auto hidden = torch::randn({3, 256}).to(torch::kBFloat16);
    const auto want = model::Llava(whole)->logits(hidden).to(torch::kFloat64);
    const auto error = (packed->logits(hidden).to(torch::kFloat64) - want).norm() / want.norm();
    EXPECT_LT(error.item<double>(), bits == 16 ? 0.003 : 0.01);  // bfloat16; bytes
  }
}

TEST(Generator, FewerBitsMoveLogitsALittle) {
  auto config = wordy_config();
  config.text.hidden_size = 256;
  config.text.intermediate_size = 512;
  config.text.head_dim = 64;
  const auto logits_with = [&](std::int64_t bits) {
    auto model = test::tiny_model(config);
    pack_for_answers(model, bits);
    auto assistant = make_assistant(model);
    const auto prompts = mixed_prompts(assistant);
    auto row = make_row(assistant, 200, 0, 0);
    prefill(assistant, row, embed(assistant, prompts[0]), prompts[0].ids);
    return row.logits.to(torch::kFloat64);
  };
  const auto whole = logits_with(16);
  const auto error = [&](std::int64_t bits) {
    return ((logits_with(bits) - whole).norm() / whole.norm()).item<double>();
  };
  EXPECT_GT(error(8), 0);
  EXPECT_LT(error(8), 0.1);
  EXPECT_GT(error(4), error(8));
  EXPECT_LT(error(4), 0.6);
  auto model = test::tiny_model(config);
  EXPECT_THAT(support::error_of(Fault::usage, [&] { pack_for_answers(model, 5); }),
              testing::HasSubstr("16, 8 or 4"));
}

TEST(Generator, FastBatchesDifferByRoundingAlone) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto prompts = mixed_prompts(assistant);
  std::vector<Row> exact, fast;
  for (auto* list : {&exact, &fast})
    for (const auto& prompt : prompts) {
      list->push_back(make_row(assistant, 200, 0, 0));
      prefill(assistant, list->back(), embed(assistant, prompt), prompt.ids);
    }
  const auto pointers = [](std::vector<Row>& rows) {
    std::vector<Row*> all;
    for (auto& row : rows) all.push_back(&row);
    return all;
  };
  decode(assistant, pointers(exact), {5, 6, 7, 8, 9}, Batching::exact);
  decode(assistant, pointers(fast), {5, 6, 7, 8, 9}, Batching::fast);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto difference = (exact[i].logits - fast[i].logits).abs().max();
    EXPECT_LT((difference / exact[i].logits.abs().max()).item<float>(), 1e-5);  // fp32
  }
}

TEST(Generator, SaysHowTextAndPicturesAddUpWhenTheyDoNotFit) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  assistant.context = 40;
  const auto prompt = example(assistant, "What is it?", {picture(40, 30, 1, assistant)});
  const auto text = prompt.ids.size() - 1;
  const auto message =
      error_of(Fault::capacity, [&] { answer_one(assistant, prompt, {.max_new_tokens = 1}); });
  EXPECT_THAT(message, testing::HasSubstr(std::to_string(text + 4) + " tokens (" +
                                          std::to_string(text) + " of text + 4 of an image)"));
  EXPECT_THAT(message, testing::HasSubstr("context holds 40"));
}

TEST(Generator, ALongAnswerEndsWithTheContext) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto prompt = example(assistant, "What is it?");
  assistant.context = prompt.num_tokens() + 3;
  const auto got = answer_one(assistant, prompt, {.max_new_tokens = -1, .ignore_eos = true});
  EXPECT_EQ(got.ids.size(), 3u);
  EXPECT_EQ(got.finish, Finish::length);
}

TEST(Assistant, EncodesAPictureOnceForAllTurnsAndConversations) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto shown = picture(40, 30, 1, assistant);
  const auto first = embed(assistant, example(assistant, "a", {shown}));
  const auto features = assistant.features.find(shown);
  ASSERT_TRUE(features.defined());
  EXPECT_FALSE(assistant.features.find(picture(40, 30, 2, assistant)).defined());
  {
    torch::NoGradGuard
        no_grad;  // with the tower gone, the same embeds can only come from the cache
    for (auto& parameter : assistant.model->vision->parameters()) parameter.fill_(0);
  }
  EXPECT_TRUE(torch::equal(embed(assistant, example(assistant, "a", {shown})), first));
}

TEST(Assistant, PutsMarksInFrontWhereThereAreNone) {
  const auto assistant = make_assistant(test::tiny_model(wordy_config()));
  const auto one = picture(40, 30, 1, assistant);
  const auto video = assistant.encoder.video({media::Image{2, 2, std::vector<std::uint8_t>(12)}});
  EXPECT_EQ(with_marks("Hi", {}), "Hi");
  EXPECT_EQ(with_marks("Hi", {one}), "<image>\nHi");
  EXPECT_EQ(with_marks("Hi", {one, one}), "<image>\n<image>\nHi");
  EXPECT_EQ(with_marks("Hi", {video}), "<video>\nHi");
  EXPECT_EQ(with_marks("is <image> like <image>?", {one, one}), "is <image> like <image>?");
  const auto message = error_of(Fault::usage, [&] { with_marks("<image>", {one, one}); });
  EXPECT_THAT(message, testing::HasSubstr("1 <image> marks but 2 pictures"));
  error_of(Fault::usage, [&] { with_marks("<image>", {}); });
}

TEST(Assistant, NamesAModelByItsFolder) {
  EXPECT_EQ(model_name("models/llava-v1.5-7b"), "llava-v1.5-7b");
  EXPECT_EQ(model_name("models/llava-v1.5-7b/"), "llava-v1.5-7b");
  EXPECT_EQ(model_name("out/stage2/checkpoint-500"), "stage2_checkpoint-500");
}

}  // namespace
}  // namespace llava::generate
