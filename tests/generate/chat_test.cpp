#include "llava/generate/chat.h"

#include "scripted.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>

namespace llava::generate {
namespace {

using support::error_of;

input::Picture picture(const Assistant& assistant, std::uint8_t seed) {
  media::Image image{40, 30, {}};
  for (int i = 0; i < 3 * 40 * 30; ++i)
    image.rgb.push_back(static_cast<std::uint8_t>(seed + i * 37));
  return assistant.encoder.picture(image);
}

Assistant tiny_assistant() {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  assistant.context = 500;
  return assistant;
}

TEST(Session, ATurnCostsItsOwnTokensOnly) {
  auto assistant = tiny_assistant();
  Session session(assistant, {.max_new_tokens = 6, .ignore_eos = true});
  session.ask("What is in the picture?", {picture(assistant, 1)});
  const auto first = session.timings().prefill_tokens;
  EXPECT_EQ(session.tokens(), first + 5);  // the sixth has not gone through the model

  session.ask("Why?");
  // "</s>USER: Why? ASSISTANT:" and the sixth token of the first answer
  const auto own = llama_tokenizer().ids("</s>USER: Why? ASSISTANT:").size() + 1;
  EXPECT_EQ(session.timings().prefill_tokens, static_cast<std::int64_t>(own));
  EXPECT_EQ(session.tokens(), first + 5 + static_cast<std::int64_t>(own) + 5);
  EXPECT_EQ(session.timings().vision_ms, 0);
}

TEST(Session, TheCachedSecondTurnEqualsAWholeForward) {
  auto assistant = tiny_assistant();
  Session session(assistant, {.max_new_tokens = 4, .ignore_eos = true});
  const auto shown = picture(assistant, 1);
  const auto first = session.ask("What is in the picture?", {shown});
  const auto second = session.ask("Why?");

  // The same ids in one piece, without a cache.
  text::Conversation conversation;
  conversation.messages = {{text::Role::user, "<image>\nWhat is in the picture?"}};
  auto whole = assistant.encoder.encode_prompt(conversation, {shown});
  whole = followed_by(whole, first.ids);
  whole = followed_by(whole, llama_tokenizer().ids("</s>USER: Why? ASSISTANT:"));
  torch::NoGradGuard no_grad;
  for (const auto id : second.ids) {
    const auto embeds = embed(assistant, whole);
    const auto hidden = assistant.model->llama->forward(embeds, {0, embeds.size(0)});
    EXPECT_EQ(assistant.model->logits(hidden)[-1].argmax().item<std::int64_t>(), id);
    whole = followed_by(whole, {id});
  }
}

/// Says "Blue" + what the test adds, then what ends a turn of llava_v0.
Assistant blue_assistant(const std::string& script) {
  return make_assistant(scripted_model(kColon, llama_tokenizer().ids(script)), "llava_v0");
}

TEST(Session, AStopStringIsCutFromTheCache) {
  auto assistant = blue_assistant("Blue.###Human no");
  Session session(assistant, {.max_new_tokens = 20});
  EXPECT_EQ(session.ask("Colour?").text, "Blue.");
  const auto kept = static_cast<std::int64_t>(llama_tokenizer().ids("Blue.").size());
  EXPECT_EQ(session.tokens(), session.timings().prefill_tokens + kept);
  EXPECT_EQ(session.ask("Sure?").text, "Blue.");
}

TEST(Session, AStopStringInsideATokenMakesTheTurnAnewNextTime) {
  auto assistant = make_assistant(scripted_model(kColon, llama_tokenizer().ids("It is redish")));
  assistant.stop_strings = {"dish"};
  Session session(assistant, {.max_new_tokens = 20});
  EXPECT_EQ(session.ask("Colour?").text, "It is re");
  const auto first = session.timings().prefill_tokens;
  EXPECT_EQ(session.tokens(), 0);
  EXPECT_EQ(session.ask("Sure?").text, "It is re");
  EXPECT_GT(session.timings().prefill_tokens, first);  // both turns
}

TEST(Session, RetryDrawsAnewWithoutPrefill) {
  auto assistant = tiny_assistant();
  Session session(assistant,
                  {.sampling = {.temperature = 1}, .max_new_tokens = 8, .ignore_eos = true});
  const auto first = session.ask("Tell me", {picture(assistant, 1)});
  const auto prompt = session.timings().prefill_tokens;
  const auto second = session.retry();
  EXPECT_NE(second.ids, first.ids);
  EXPECT_EQ(session.timings().prefill_tokens, 0);
  EXPECT_EQ(session.tokens(), prompt + 7);
  ASSERT_EQ(session.conversation().messages.size(), 2u);
  EXPECT_EQ(session.conversation().messages[1].text, second.text);
}

TEST(Session, GreedyRetryGivesTheSameAnswer) {
  auto assistant = tiny_assistant();
  Session session(assistant, {.max_new_tokens = 8, .ignore_eos = true});
  session.ask("Hello");
  const auto second = session.ask("And?").ids;
  EXPECT_EQ(session.retry().ids, second);
  EXPECT_EQ(session.retry().ids, second);
}

/// Asks for what cannot work, then goes on; the answers must be those of a session without it.
void expect_unharmed(Assistant& assistant, const std::function<void(Session&)>& harm) {
  const GenerateConfig config{.max_new_tokens = 5, .ignore_eos = true};
  Session plain(assistant, config), harmed(assistant, config);
  for (auto* session : {&plain, &harmed}) session->ask("Hello", {picture(assistant, 1)});
  harm(harmed);
  EXPECT_EQ(harmed.conversation().messages.size(), 2u);
  EXPECT_EQ(harmed.tokens(), plain.tokens());
  EXPECT_EQ(harmed.ask("And?").ids, plain.ask("And?").ids);
}

TEST(Session, ErrorsLeaveTheConversationAsItWas) {
  auto assistant = tiny_assistant();
  expect_unharmed(assistant, [&](Session& session) {
    error_of(Fault::usage, [&] { session.ask("<image> and <image>", {picture(assistant, 2)}); });
  });
  expect_unharmed(assistant, [&](Session& session) {
    std::string text;
    for (int i = 0; i < 500; ++i) text += " word";
    const auto message = error_of(Fault::capacity, [&] { session.ask(text); });
    EXPECT_THAT(message, testing::HasSubstr("of the conversation so far"));
    EXPECT_THAT(message, testing::HasSubstr("context holds 500"));
  });
  expect_unharmed(assistant, [&](Session& session) {
    EXPECT_THROW(session.ask("Hi", {}, [](auto) -> bool { throw std::runtime_error("gone"); }),
                 std::runtime_error);
  });
}

TEST(Session, AFailedRetryKeepsTheOldAnswer) {
  auto assistant = tiny_assistant();
  const GenerateConfig config{.max_new_tokens = 5, .ignore_eos = true};
  Session plain(assistant, config), harmed(assistant, config);
  plain.ask("Hello");
  const auto text = harmed.ask("Hello").text;
  EXPECT_THROW(harmed.retry([](auto) -> bool { throw std::runtime_error("gone"); }),
               std::runtime_error);
  ASSERT_EQ(harmed.conversation().messages.size(), 2u);
  EXPECT_EQ(harmed.conversation().messages[1].text, text);
  EXPECT_NO_THROW(harmed.ask("And?"));
  EXPECT_EQ(harmed.conversation().messages.size(), 4u);
}

TEST(Session, AnAnswerThatIsStoppedIsKeptAsFarAsItCame) {
  auto assistant = tiny_assistant();
  Session session(assistant, {.max_new_tokens = 50, .ignore_eos = true});
  std::string streamed;
  const auto got = session.ask("Hello", {}, [&](std::string_view text) {
    streamed += text;
    return streamed.size() < 10;
  });
  EXPECT_EQ(got.finish, Finish::cancelled);
  EXPECT_EQ(session.conversation().messages.back().text, got.text);
  EXPECT_LT(got.ids.size(), 50u);
  EXPECT_NO_THROW(session.ask("And?"));
}

TEST(Session, AnEmptyAnswerDoesNotEndTheConversation) {
  auto assistant = make_assistant(scripted_model(kColon, {2}));
  Session session(assistant, {});
  for (const auto* text : {"Hello?", "Are you there?", "Well?"}) {
    const auto got = session.ask(text);
    EXPECT_EQ(got.text, "");
    EXPECT_EQ(got.finish, Finish::stop);
  }
  EXPECT_EQ(session.conversation().messages.size(), 6u);
}

TEST(Session, GoesOnUntilTheContextIsFullAndSaysSo) {
  auto assistant = tiny_assistant();
  assistant.context = 200;
  Session session(assistant, {.max_new_tokens = 100, .ignore_eos = true});
  session.ask("Hello");
  const auto cut = session.ask("More");  // as much of it as there is room for
  EXPECT_EQ(cut.finish, Finish::length);
  EXPECT_LT(cut.ids.size(), 100u);
  EXPECT_EQ(session.tokens() + 1, 200);  // the last token has not gone through the model
  const auto message = error_of(Fault::capacity, [&] { session.ask("More"); });
  EXPECT_THAT(message, testing::HasSubstr("after 199 of the conversation so far"));
  EXPECT_THAT(message, testing::HasSubstr("start a new conversation"));
}

TEST(Session, ClearBeginsANewConversation) {
  auto assistant = tiny_assistant();
  Session session(assistant, {.max_new_tokens = 5, .ignore_eos = true});
  const auto first = session.ask("Hello", {picture(assistant, 1)}).ids;
  session.ask("And?");
  session.clear();
  EXPECT_EQ(session.tokens(), 0);
  EXPECT_TRUE(session.conversation().messages.empty());
  error_of(Fault::usage, [&] { session.retry(); });
  EXPECT_EQ(session.ask("Hello", {picture(assistant, 1)}).ids, first);
}

TEST(Session, BeamSearchAlsoLeavesAConversation) {
  auto assistant = tiny_assistant();
  const GenerateConfig config{.max_new_tokens = 4, .num_beams = 2, .ignore_eos = true};
  Session session(assistant, config);
  session.ask("Hello");
  EXPECT_NO_THROW(session.ask("And?"));
  const auto own = llama_tokenizer().ids("</s>USER: And? ASSISTANT:").size() + 4;
  EXPECT_EQ(session.timings().prefill_tokens, static_cast<std::int64_t>(own));
}

TEST(Session, TheSystemTextCanBeReplaced) {
  auto assistant = tiny_assistant();
  Session usual(assistant, {.max_new_tokens = 1}), brief(assistant, {.max_new_tokens = 1}, "Go.");
  usual.ask("Hello");
  brief.ask("Hello");
  EXPECT_LT(brief.timings().prefill_tokens, usual.timings().prefill_tokens);
}

}  // namespace
}  // namespace llava::generate
