// Thousands of damaged tokenizer files, in memory: each is refused with an Error or works, within
// the promised memory. With LLAVA_MUTANTS=10000 in the environment about as many are tried, and
// each must end within 2 s, under the sanitizers too (slow machines: run it alone).
#include "../../src/text/sentencepiece_model.h"
#include "../../src/text/tokenizer_json.h"
#include "folder.h"
#include "llava/base/check.h"
#include "support/peak_memory.h"
#include "train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <chrono>
#include <random>

namespace llava::text {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;
constexpr double kMostSeconds = 2;

constexpr std::string_view kSample = "Hello wor\u00efld </s> \U0001F600\xff 12  a\n<image>";

/// A copy with some bytes changed, removed, doubled or cut off.
std::string mutated(std::string bytes, std::mt19937& random) {
  for (std::size_t i = 0, n = 1 + random() % 4; i < n && !bytes.empty(); ++i) {
    const std::size_t at = random() % bytes.size();
    const std::size_t length = std::min<std::size_t>(1 + random() % 16, bytes.size() - at);
    switch (random() % 6) {
      case 0: bytes[at] = static_cast<char>(random()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8); break;
      case 2: bytes.erase(at, length); break;
      case 3: bytes.insert(at, bytes.substr(at, length)); break;
      case 4: bytes.insert(at, std::string(length, static_cast<char>(random()))); break;
      case 5: bytes.resize(random() % 8 ? bytes.size() : at); break;
    }
  }
  return bytes;
}

/// Gives `work` mutants of `good`, a share of LLAVA_MUTANTS or of 8,000; it returns, or throws
/// Error(data) that names the file.
template <class Work>
void try_mutants(const std::string& good, double share, const std::string& name, const Work& work) {
  const char* asked = std::getenv("LLAVA_MUTANTS");
  const int count = static_cast<int>(share * (asked ? std::atoi(asked) : 8000));
  std::mt19937 random(9);
  int worked = 0;
  for (int i = 0; i < count; ++i) {
    const auto bytes = mutated(good, random);
    const auto begin = std::chrono::steady_clock::now();
    const auto growth = support::peak_growth([&] {
      try {
        work(bytes);
        ++worked;
      } catch (const Error& error) {
        EXPECT_EQ(static_cast<int>(error.fault()), static_cast<int>(Fault::data)) << error.what();
        EXPECT_THAT(error.what(), testing::HasSubstr(name));
      }
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    EXPECT_LE(growth, kMostBytes) << "mutant " << i;
    if (asked) {
      EXPECT_LE(seconds.count(), kMostSeconds) << "mutant " << i;
    }
  }
  EXPECT_GT(worked, count / 100) << "mutants that are all refused show little";
  EXPECT_LT(worked, count - count / 100);
}

std::vector<int> ids_of(const PieceEncoder& encoder) {
  std::vector<Token> tokens;
  encoder.encode(kSample, {0, kSample.size()}, /*prefix=*/true, tokens);
  std::vector<int> ids;
  for (const auto& token : tokens) ids.push_back(static_cast<int>(token.id));
  return ids;
}

TEST(Mutants, OfAModelAreRefusedOrEqualSentencePiece) {
  std::vector<std::string> lines;
  for (int i = 0; i < 20; ++i) lines.push_back("Hello world, line " + std::to_string(i));
  const auto good = train(lines, {{"vocab_size", "330"}});
  try_mutants(good, 0.6, "a.model", [](const std::string& bytes) {
    auto model = parse_sentencepiece(bytes, "a.model");
    // Pieces of kind unused are merged through there and never made here.
    bool comparable = model.add_dummy_prefix;
    for (const auto& piece : model.pieces) comparable &= piece.kind != PieceKind::unused;
    const auto ids = ids_of(PieceEncoder(sentencepiece_vocabulary(std::move(model))));
    // What is let through, the library loads, and makes the same of it.
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.LoadFromSerializedProto(bytes).ok());
    std::vector<int> want;
    ASSERT_TRUE(processor.Encode(std::string(kSample), &want).ok());
    if (comparable) {
      EXPECT_EQ(ids, want);
    }
  });
}

TEST(Mutants, OfTokenizerJsonAreRefusedOrWork) {
  for (const char* kind : {"llama3", "qwen2", "pieces_legacy", "pieces_first"}) {
    const auto good = read_file(std::string(LLAVA_GOLDEN "/") + kind + "/tokenizer.json");
    try_mutants(good, 0.09, "a.json", [](const std::string& bytes) {
      const auto parsed = parse_tokenizer_json(tokenizer_json(bytes, "a.json"), "a.json");
      std::vector<Token> tokens;
      const Range whole{0, kSample.size()};
      if (const auto* pieces = std::get_if<PieceVocabulary>(&parsed.vocabulary)) {
        PieceEncoder(*pieces).encode(kSample, whole, true, tokens);
      } else {
        ByteEncoder(std::get<ByteVocabulary>(parsed.vocabulary)).encode(kSample, whole, tokens);
      }
    });
  }
}

TEST(Mutants, OfTheSettingsAreRefusedOrWork) {
  const std::string config = R"({"added_tokens_decoder": {"0": {"content": "<unk>", "lstrip": false,
      "special": true}, "300": {"content": "<image>", "rstrip": true, "single_word": true}},
      "bos_token": "<s>", "legacy": false, "model_max_length": 4096, "additional_special_tokens":
      ["<image>", {"content": "<x>"}]})";
  const support::TemporaryFolder folder;
  folder.write("tokenizer.model", train({"text of text", "more text"}, {{"vocab_size", "280"}}));
  try_mutants(config, 0.04, "tokenizer_config.json", [&](const std::string& bytes) {
    folder.write("tokenizer_config.json", bytes);
    const auto tokenizer = Tokenizer::load(folder.path());
    tokenizer.decode(tokenizer.ids(kSample), false);
  });
}

}  // namespace
}  // namespace llava::text
