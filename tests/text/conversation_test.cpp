#include "llava/text/conversation.h"

#include "folder.h"
#include "llava/base/config.h"
#include "support/digests.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <random>

namespace llava::text {
namespace {

using Ids = std::vector<std::int64_t>;

/// Turns that alternate, the user's first.
Conversation talk(const std::vector<std::string>& texts) {
  Conversation conversation;
  for (std::size_t i = 0; i < texts.size(); ++i)
    conversation.messages.push_back({i % 2 ? Role::assistant : Role::user, texts[i]});
  return conversation;
}

const Conversation kQuestion = talk({"<image>\nWhat is this?"});
const Conversation kDialogue = talk({"<image>\nWhat is this?", "A cat.", "What color?", "Black."});

std::string open_text(const std::string& name, const Conversation& conversation) {
  return render_open(find_template(name), conversation).text;
}

// Bytes and the first 12 hex digits of the SHA-256 of the reference's get_prompt, for the question
// waiting for its answer and for the whole dialogue.
// Source: LLaVA 1.2.2 and LLaVA-NeXT, conversation.py, run on the two conversations above.
TEST(Conversation, RendersTheReferencesBytes) {
  const struct {
    const char* name;
    std::size_t question_bytes;
    const char* question_digest;
    std::size_t dialogue_bytes;
    const char* dialogue_digest;
  } kRows[] = {
      {"default", 1687, "2397d617f70f", 1738, "f89255022af4"},
      {"v0", 1687, "2397d617f70f", 1738, "f89255022af4"},
      {"llava_v0", 200, "b13df988fa0f", 251, "21ccd23bbf72"},
      {"v0_mmtag", 355, "97e758ec123f", 406, "ce042f24655e"},
      {"v1", 193, "d89a9a40fa02", 243, "63fd5fc30b2f"},
      {"vicuna_v1", 193, "d89a9a40fa02", 243, "63fd5fc30b2f"},
      {"llava_v1", 195, "18298cb4fa10", 245, "4365efb2d4af"},
      {"v1_mmtag", 350, "f7430fbf7ea1", 400, "69029d8a5fee"},
      {"llama_2", 563, "fd73275d8a5e", 616, "e3eaff3eba52"},
      {"llava_llama_2", 241, "53f74a8effef", 294, "04f676af166b"},
      {"llava_llama_2_simple", 124, "ad2e54eaa78e", 177, "bdb7eb91774e"},
      {"llava_llama_2_mmtag", 217, "42e9c2c74e56", 270, "f55f9ba39609"},
      {"mistral_instruct", 36, "8e2f719a0e85", 86, "783212f9884c"},
      {"mpt", 207, "6d20e8720581", 299, "b561c50f583e"},
      {"chatml_direct", 120, "3eba1a4c0423", 212, "65f73e958d63"},
      {"mistral_direct", 120, "3eba1a4c0423", 212, "65f73e958d63"},
      {"mistral_orca", 247, "9a4d741a0187", 339, "15ac61d8dbce"},
      {"mistral_zephyr", 94, "8099baf21da5", 152, "30f167824def"},
      {"qwen_1_5", 129, "cb6941b5a20c", 224, "6ad5da9c2652"},
      {"qwen_2", 129, "cb6941b5a20c", 224, "6ad5da9c2652"},
      {"qwen_2_5", 169, "54eeae3553c1", 264, "846d86dc20da"},
      {"gemma_instruct", 76, "b2dc752960e7", 182, "b79547c204e3"},
  };
  for (const auto& row : kRows) {
    const auto question = open_text(row.name, kQuestion), dialogue = open_text(row.name, kDialogue);
    EXPECT_EQ(question.size(), row.question_bytes) << row.name;
    EXPECT_EQ(support::sha256(question).substr(0, 12), row.question_digest) << row.name;
    EXPECT_EQ(dialogue.size(), row.dialogue_bytes) << row.name;
    EXPECT_EQ(support::sha256(dialogue).substr(0, 12), row.dialogue_digest) << row.name;
  }
  EXPECT_EQ(support::sha256(open_text("plain", kQuestion)).substr(0, 12), "98626bf50d16");
}

TEST(Conversation, WritesLlama3WithItsHeadersAndAnOpenTurn) {
  const std::string system =
      "You are a helpful language and vision assistant. You are able to understand the visual "
      "content that the user provides, and assist the user with a variety of tasks using natural "
      "language.";
  EXPECT_EQ(open_text("llava_llama_3", kDialogue),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + system +
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?"
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nWhat color?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nBlack.<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(Conversation, EveryNameAndAliasIsFoundAndOthersNameTheNearest) {
  for (const auto& name : template_names()) {
    const auto& chat = find_template(name);
    EXPECT_EQ(&find_template(std::string(template_name(chat))), &chat) << name;
    EXPECT_EQ(stop_strings(chat).size(), 1u) << name;
  }
  const auto message = support::error_of(Fault::usage, [] { find_template("vicuna_v2"); });
  EXPECT_THAT(message, testing::HasSubstr("did you mean \"vicuna_v1\"?"));
  support::error_of(Fault::usage, [] { find_template(""); });
}

TEST(Conversation, GivenSystemTextTakesTheTemplatesPlaceAndIsLiteral) {
  auto conversation = kQuestion;
  conversation.system = "Be brief.</s>";
  const auto vicuna = render_open(find_template("v1"), conversation);
  EXPECT_EQ(vicuna.text, "Be brief.</s> USER: <image>\nWhat is this? ASSISTANT:");
  EXPECT_EQ(vicuna.literal[0].begin, 0u);
  EXPECT_EQ(vicuna.literal[0].end, 13u);
  EXPECT_THAT(open_text("qwen_1_5", conversation),
              testing::StartsWith("<|im_start|>system\nBe brief.</s><|im_end|>\n<|im_start|>user"));
  EXPECT_THAT(open_text("llama_2", conversation),
              testing::StartsWith("[INST] <<SYS>>\nBe brief.</s>\n<</SYS>>\n\n<image>"));
  const auto message =
      support::error_of(Fault::data, [&] { open_text("gemma_instruct", conversation); });
  EXPECT_THAT(message, testing::HasSubstr("gemma_instruct has no place for a system text"));
}

TEST(Conversation, LaterTurnsAloneFollowTheWordsBeforeThem) {
  const auto three = talk({"One?", "First.", "Two?", "Second.", "Three?"});
  // What the assistant says around its words, as it was trained to.
  const auto spoken = [](std::string_view name, const std::string& words) {
    const bool llama_2 = name.find("llama_2") != name.npos || name.find("mistral_i") != name.npos;
    const bool colon = name.find("v0") == 0 || name.find("v1") == 0 || name.find("vicuna") == 0 ||
                       name.find("llava_v") == 0 || name == "default";
    return (llama_2 || colon ? " " : "") + words + (llama_2 ? " " : "");
  };
  for (const auto& name : template_names()) {
    if (name == "plain" || name == "v0_plain") continue;
    const auto& chat = find_template(name);
    const auto first = [&](std::size_t turns) {
      auto some = three;
      some.messages.resize(turns);
      return some;
    };
    EXPECT_EQ(render_open(chat, first(1)).text + spoken(name, "First.") +
                  render_open(chat, first(3), 2).text + spoken(name, "Second.") +
                  render_open(chat, three, 4).text,
              render_open(chat, three).text)
        << name;
    const auto later = render_open(chat, three, 4);
    ASSERT_EQ(later.literal.size(), 1u) << name;
    EXPECT_EQ(later.text.substr(later.literal[0].begin, 6), "Three?") << name;
  }
  const auto message =
      support::error_of(Fault::data, [&] { render_open(find_template("v1"), three, 1); });
  EXPECT_THAT(message, testing::HasSubstr("turn 1 of 5"));
}

TEST(Conversation, TurnsMustAlternate) {
  Conversation twice = talk({"One?", "First."});
  twice.messages.push_back({Role::assistant, "Again."});
  EXPECT_THAT(support::error_of(Fault::data, [&] { render(find_template("v1"), twice); }),
              testing::HasSubstr("turn 3 is the assistant's again"));
  support::error_of(Fault::data, [&] { render(find_template("v1"), {}); });
  support::error_of(Fault::data, [&] { render(find_template("plain"), kDialogue); });
  support::error_of(Fault::data, [&] {
    render(find_template("plain"), talk({"no picture", "answer"}));
  });
  support::error_of(Fault::data, [&] { open_text("plain", kDialogue); });
  EXPECT_THAT(support::error_of(Fault::data, [&] { open_text("llama_2", talk({""})); }),
              testing::HasSubstr("the first user turn is empty"));
}

TEST(Conversation, LeadingAssistantTurnIsDroppedInTraining) {
  Conversation late = kDialogue;
  late.messages.insert(late.messages.begin(), {Role::assistant, "Hello!"});
  EXPECT_EQ(render(find_template("v1"), late).text, render(find_template("v1"), kDialogue).text);
  EXPECT_THAT(support::error_of(Fault::data, [&] { open_text("v1", late); }),
              testing::HasSubstr("begins with the assistant's turn"));
}

TEST(Conversation, PlacesImagesAsEitherReference) {
  const auto placed = [](const std::string& text, const char* name, Placement placement) {
    return place_images(talk({text}), find_template(name), placement).messages[0].text;
  };
  const auto first = Placement::first, keep = Placement::keep_many;
  EXPECT_EQ(placed("What is this?\n<image>", "v1", first), "<image>\nWhat is this?");
  EXPECT_EQ(placed("<image>", "v1", first), "<image>");
  EXPECT_EQ(placed(" a <image>\u3000b<image> ", "v1", first), "<image>\na \u3000b");
  EXPECT_EQ(placed(" no mark ", "v1", first), " no mark ");
  EXPECT_EQ(placed("Look <image>", "v1_mmtag", first), "<Image><image></Image>\nLook");
  EXPECT_EQ(placed("What is this?\n<image>", "v1", keep), "<image>\nWhat is this?");
  EXPECT_EQ(placed("<image> tail ", "v1", keep), "<image> tail ");
  EXPECT_EQ(placed("a <image> b <image>", "v1", keep), "a <image> b <image>");
  EXPECT_EQ(placed("QA_GT_caption_based_noisyWhy?", "v1", keep), "Why?");
  EXPECT_EQ(placed("QA_GT_caption_based_noisyWhy?", "v1", first), "QA_GT_caption_based_noisyWhy?");
}

// ── Labels ───────────────────────────────────────────────────────────────────────────────────────

constexpr std::int64_t kImage = -200, kIgnore = -100;

struct Labelled {
  Ids ids, labels;
};

/// Ids and labels of a prompt as input/encoder makes them: chunks between <image> marks are texts
/// of their own, BOS comes once.
Labelled label(const Tokenizer& tokenizer, const Prompt& prompt) {
  Labelled out;
  const auto add = [&](std::int64_t id, bool learned) {
    out.ids.push_back(id);
    out.labels.push_back(learned ? id : kIgnore);
  };
  if (tokenizer.adds_bos()) add(*tokenizer.bos(), false);
  for (std::size_t at = 0;;) {
    const auto mark = std::min(prompt.text.find(kImageMark, at), prompt.text.size());
    std::vector<Range> literal;
    for (const auto& range : prompt.literal) {
      const auto begin = std::max(range.begin, at), end = std::min(range.end, mark);
      if (begin < end) literal.push_back({begin - at, end - at});
    }
    for (const auto& [id, bytes] : tokenizer.encode(prompt.text.substr(at, mark - at), literal)) {
      const bool again = tokenizer.adds_bos() && out.ids.size() == 1 && id == *tokenizer.bos();
      if (!again) add(id, is_learned({bytes.begin + at, bytes.end + at}, prompt.learned));
    }
    if (mark == prompt.text.size()) return out;
    add(kImage, false);
    at = mark + kImageMark.size();
  }
}

std::vector<std::size_t> learned_places(const Labelled& example) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < example.labels.size(); ++i)
    if (example.labels[i] != kIgnore) places.push_back(i);
  return places;
}

TEST(Labels, EqualTheReferencesForVicuna) {
  const auto golden = read_json(LLAVA_GOLDEN "/vectors.json");
  for (const auto& row : golden["labels_v1"]) {
    const auto mode = row["mode"].get<std::string>();
    const auto& tokenizer = llama(mode == "legacy" ? Spacing::legacy
                                  : mode == "new"  ? Spacing::first_segment
                                                   : Spacing::first_segment_431);
    const auto prompt = render(
        find_template("v1"), talk({"<image>\nWhat is this?", "A cat.", "What colour?", "Black."}));
    EXPECT_EQ(prompt.text, row["conversation"]);
    const auto example = label(tokenizer, prompt);
    EXPECT_EQ(example.ids, row["input_ids"].get<Ids>()) << mode;
    EXPECT_EQ(example.labels, row["labels"].get<Ids>()) << mode;
  }
}

// Counts and places of the learned tokens of the dialogue, worked out with the reference's code.
TEST(Labels, FallWhereTheReferenceLearns) {
  using Places = std::vector<std::size_t>;
  const struct {
    const char* name;
    Spacing spacing;
    std::size_t total;
    Places places;
  } kRows[] = {
      {"v1", Spacing::first_segment, 64, {47, 48, 49, 50, 61, 62, 63}},
      {"v1", Spacing::legacy, 65, {47, 48, 49, 50, 62, 63, 64}},
      {"llava_llama_2", Spacing::legacy, 83, {63, 64, 65, 66, 67, 79, 80, 81, 82}},
      {"mistral_instruct", Spacing::legacy, 35, {16, 17, 18, 19, 20, 31, 32, 33, 34}},
  };
  for (const auto& row : kRows) {
    const auto example = label(llama(row.spacing), render(find_template(row.name), kDialogue));
    EXPECT_EQ(example.ids.size(), row.total) << row.name;
    EXPECT_EQ(learned_places(example), row.places) << row.name;
  }
}

TEST(Labels, PlainLearnsTheCaptionAndItsNewline) {
  const auto prompt = render(find_template("plain"), talk({"Describe it.\n<image>", "a cat"}));
  EXPECT_EQ(prompt.text, "<image>a cat\n");
  const auto example = label(llama(Spacing::legacy), prompt);
  EXPECT_EQ(example.ids, (Ids{1, kImage, 263, 6635, 13}));
  EXPECT_EQ(example.labels, (Ids{kIgnore, kIgnore, 263, 6635, 13}));
  // The lone dummy prefix of a caption that begins with a byte piece is learned too.
  const auto emoji = label(llama(Spacing::legacy),
                           render(find_template("plain"), talk({"<image>", "\U0001F600"})));
  EXPECT_EQ(emoji.labels, (Ids{kIgnore, kIgnore, 29871, 243, 162, 155, 131, 13}));
}

/// The reference's way, which finds the rounds by tokenizing each again.
/// Source: LLaVA 1.2.2, train.py, preprocess_v1 and preprocess_llama_2.
struct Rounds {
  std::string end, answer;  // what ends a round; what comes before the answer in it
  bool shorter_later;       // rounds after the first lose a token when they follow </s>
};

Ids labels_by_rounds(const Tokenizer& tokenizer, const Labelled& example, const std::string& text,
                     const Rounds& rule, const std::vector<std::string>& rounds) {
  const auto count = [&](const std::string& part) {  // BOS among them, also before a typed <s>
    std::size_t ids = 1;
    for (std::size_t at = 0;; ++ids) {
      const auto mark = part.find(kImageMark, at);
      ids += tokenizer.ids(part.substr(at, mark - at)).size();
      if (mark == std::string::npos) return ids;
      at = mark + kImageMark.size();
    }
  };
  Ids labels = example.ids;
  std::size_t at = 1;
  labels[0] = kIgnore;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    const auto cut = rounds[i].find(rule.answer);
    std::size_t round = count(rounds[i]);
    // Less BOS and the lone space mark at the end of the instruction.
    std::size_t asked = count(rounds[i].substr(0, cut) + rule.answer) - 2;
    if (i > 0 && rule.shorter_later) --round, --asked;
    for (std::size_t k = at; k < std::min(at + asked, labels.size()); ++k) labels[k] = kIgnore;
    at += round;
  }
  EXPECT_EQ(at, labels.size()) << text;
  return labels;
}

/// Random turns of words, numbers, spaces, newlines and characters outside the vocabulary.
Conversation random_talk(std::mt19937& random) {
  const std::vector<std::string> parts = {"cat",    " the", "  ",     "\n",         " 12", "don't",
                                          "\u00e9", ", ",   "\u4f60", "\U0001F600", ".",   "USER",
                                          ":",      " a",   "[x]",    "  \n"};
  std::vector<std::string> texts;
  for (std::size_t turn = 0, turns = 2 * (1 + random() % 3); turn < turns; ++turn) {
    std::string text = turn == 0 ? "<image>\n" : "";
    for (std::size_t i = 0, n = 1 + random() % 6; i < n; ++i)
      text += parts[random() % parts.size()];
    texts.push_back(text);
  }
  return talk(texts);
}

std::vector<std::string> split(const std::string& text, const std::string& at) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + at.size();
  }
  return parts;
}

TEST(Labels, EqualThoseFoundByTokenizingRoundsAgain) {
  const Rounds vicuna{"</s>", " ASSISTANT: ", false};
  const Rounds llama_2{"</s>", "[/INST] ", false};
  auto vicuna_shorter = vicuna;
  vicuna_shorter.shorter_later = true;
  const struct {
    const char* name;
    Spacing spacing;
    Rounds rounds;
  } kRows[] = {
      {"v1", Spacing::legacy, vicuna},
      {"v1", Spacing::first_segment, vicuna_shorter},
      {"v1", Spacing::first_segment_431, vicuna},
      {"llava_llama_2", Spacing::legacy, llama_2},
      {"llava_llama_2", Spacing::first_segment, llama_2},
      {"mistral_instruct", Spacing::legacy, llama_2},
  };
  for (const auto& row : kRows) {
    const auto& tokenizer = llama(row.spacing);
    std::mt19937 random(5);
    for (int i = 0; i < 200; ++i) {
      const auto prompt = render(find_template(row.name), random_talk(random));
      const auto example = label(tokenizer, prompt);
      EXPECT_EQ(example.labels, labels_by_rounds(tokenizer, example, prompt.text, row.rounds,
                                                 split(prompt.text, row.rounds.end)))
          << row.name << " " << prompt.text;
    }
  }
}

/// The learned tokens' pieces, runs joined, one entry a run.
std::vector<std::string> learned_pieces(const Tokenizer& tokenizer, const Labelled& example) {
  std::vector<std::string> runs;
  bool learning = false;
  for (std::size_t i = 0; i < example.labels.size(); ++i) {
    const bool learned = example.labels[i] != kIgnore;
    if (learned && !learning) runs.emplace_back();
    if (learned) runs.back() += tokenizer.piece(example.labels[i]);
    learning = learned;
  }
  return runs;
}

Tokenizer chatml_llama() {
  return Folder(Files{{"added_tokens.json", R"({"<|im_start|>": 32000, "<|im_end|>": 32001})"}})
      .load(Spacing::first_segment);
}

TEST(Labels, ChatmlLearnsAnswersAndTheirEnd) {
  const auto tokenizer = chatml_llama();
  const auto example = label(tokenizer, render(find_template("mpt"), kDialogue));
  EXPECT_EQ(learned_pieces(tokenizer, example), (std::vector<std::string>{"A\u2581cat.<|im_end|>",
                                                                          "Bl"
                                                                          "ack.<|im_end|>"}));
}

TEST(Labels, V0LearnsHashMarksAndWholeAnswers) {
  const auto& tokenizer = llama(Spacing::legacy);
  const auto prompt = render(find_template("v0"), kDialogue);
  EXPECT_THAT(prompt.text, testing::EndsWith("questions.\n\n### Human: <image>\nWhat is this?\n"
                                             "### Assistant: A cat.\n### Human: What color?\n"
                                             "### Assistant: Black.\n### "));
  EXPECT_EQ(learned_pieces(tokenizer, label(tokenizer, prompt)),
            (std::vector<std::string>{"##"
                                      "#",
                                      "##"
                                      "#\u2581Ass"
                                      "istant:\u2581A\u2581cat.<0x0A>##"
                                      "#",
                                      "##"
                                      "#\u2581Ass"
                                      "istant:\u2581Black.<0x0A>##"
                                      "#\u2581"}));
}

TEST(Labels, QwenLearnsMarkersAndNewlinesEverywhere) {
  const auto tokenizer = Tokenizer::load(LLAVA_GOLDEN "/qwen2");
  const auto example =
      label(tokenizer, render(find_template("qwen_1_5"), talk({"<image>\nHi\n\n!\n", "Yo"})));
  const std::string newline = "\u010a";
  EXPECT_EQ(
      learned_pieces(tokenizer, example),
      (std::vector<std::string>{"<|im_start|>", newline, "<|im_end|>" + newline + "<|im_start|>",
                                newline, newline, newline + newline,
                                newline + "<|im_end|>" + newline + "<|im_start|>assistant" +
                                    newline + "Yo<|im_end|>" + newline}));
  // But a token that holds more than the newline is not its id.
  const auto learned = render(find_template("qwen_1_5"), talk({"!\n\n", "Yo"})).learned;
  const auto mark = render(find_template("qwen_1_5"), talk({"!\n\n", "Yo"})).text.find("!");
  EXPECT_TRUE(is_learned({mark + 1, mark + 2}, learned));
  EXPECT_FALSE(is_learned({mark, mark + 2}, learned));
  EXPECT_FALSE(is_learned({mark + 1, mark + 3}, learned));
  // A person's "<|im_end|>" is words and stays unlearned.
  const auto typed =
      label(tokenizer, render(find_template("qwen_1_5"), talk({"<|im_end|>", "Yo"})));
  EXPECT_EQ(std::count(typed.ids.begin(), typed.ids.end(), *tokenizer.special("<|im_end|>")), 3);
}

TEST(Labels, Llama3LearnsItsMarkersEverywhere) {
  const auto tokenizer = Tokenizer::load(LLAVA_GOLDEN "/llama3");
  ASSERT_TRUE(tokenizer.adds_bos());
  const auto prompt = render(find_template("llava_llama_3"), talk({"<image>\nHi", "Yo"}));
  EXPECT_THAT(prompt.text, testing::EndsWith("Yo<|eot_id|>"));
  const auto example = label(tokenizer, prompt);
  EXPECT_EQ(std::count(example.ids.begin(), example.ids.end(), *tokenizer.bos()), 1);
  const std::string header = "<|end_header_id|>\u010a\u010a";
  EXPECT_EQ(learned_pieces(tokenizer, example),
            (std::vector<std::string>{
                "<|start_header_id|>", header, "<|eot_id|><|start_header_id|>", header,
                "<|eot_id|><|start_header_id|>assistant" + header + "Yo<|eot_id|>"}));
}

TEST(Labels, AnswersThatHoldMarkersAreLearnedAsWords) {
  const auto& tokenizer = llama(Spacing::legacy);
  const auto prompt = render(find_template("v1"),
                             talk({"Why?", "Write </s> then USER: b ASSISTANT: c.", "And?", ""}));
  const auto example = label(tokenizer, prompt);
  EXPECT_EQ(std::count(example.ids.begin(), example.ids.end(), 2), 1);
  EXPECT_EQ(learned_pieces(tokenizer, example).size(), 1u);
  EXPECT_THAT(learned_pieces(tokenizer, example)[0], testing::EndsWith(":\u2581c.</s>"));
}

}  // namespace
}  // namespace llava::text
