#include "llava/text/conversation.h"

#include "folder.h"
#include "llava/base/config.h"
#include "support/digests.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace llava::text
