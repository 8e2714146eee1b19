#include "llava/base/config.h"
#include "llava/generate/generator.h"

#include "scripted.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>

#include <numeric>

namespace llava::generate {
namespace {

/// The model that the goldens were made with: logits are a table's row of the last token.
Assistant table_assistant(const Json& logits, std::int64_t eos) {
  const auto rows = logits.get<std::vector<std::vector<float>>>();
  const auto V = static_cast<std::int64_t>(rows.size());
  auto table = torch::empty({V, V});
  for (std::int64_t i = 0; i < V; ++i) table[i] = torch::tensor(rows[static_cast<std::size_t>(i)]);
  std::vector<std::int64_t> tokens(rows.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  auto config = test::tiny_config();
  config.text.vocab_size = V;
  auto assistant = make_assistant(last_token_model(tokens, table, config));
  assistant.stop_ids = {eos};
  return assistant;
}

TEST(BeamSearch, EqualsTransformers) {
  const auto golden = read_json(LLAVA_GOLDEN "/beams.json");
  const auto eos = golden["eos"].get<std::int64_t>();
  std::vector<Json> of_table;  // the last case of a table holds its logits
  int compared = 0;
  for (const auto& entry : golden["cases"]) {
    of_table.push_back(entry);
    if (!entry.contains("logits")) continue;
    auto assistant = table_assistant(entry["logits"], eos);
    for (const auto& wanted : of_table) {
      GenerateConfig config{.max_new_tokens = wanted["max_new_tokens"].get<std::int64_t>(),
                            .num_beams = wanted["num_beams"].get<std::int64_t>(),
                            .length_penalty = wanted["length_penalty"].get<double>()};
      input::Example prompt;
      prompt.ids = prompt.labels = {golden["first"].get<std::int64_t>()};
      const auto got = answer(assistant, {prompt}, config, {0}).at(0);
      EXPECT_EQ(got.ids, wanted["ids"].get<std::vector<std::int64_t>>()) << wanted.dump();
      EXPECT_EQ(got.finish, got.ids.back() == eos ? Finish::stop : Finish::length);
      ++compared;
    }
    of_table.clear();
  }
  EXPECT_EQ(compared, 48);
}

// On a model that looks at everything, a beam must carry its own keys and values: the answer's
// score by full forwards is the best of all that two beams could have kept.
TEST(BeamSearch, EveryBeamHasItsOwnCache) {
  auto assistant = make_assistant(test::tiny_model(wordy_config()));
  text::Conversation conversation;
  conversation.messages = {{text::Role::user, "What is it?"}};
  const auto prompt = assistant.encoder.encode_prompt(conversation, {});
  const GenerateConfig config{.max_new_tokens = 5, .num_beams = 3, .ignore_eos = true};
  const auto got = answer(assistant, {prompt}, config, {0}).at(0).ids;

  torch::NoGradGuard no_grad;
  const auto scores = [&](const std::vector<std::int64_t>& ids) {  // [V] of the next token
    const auto embeds = embed(assistant, followed_by(prompt, ids));
    const auto hidden = assistant.model->llama->forward(embeds, {0, embeds.size(0)});
    return torch::log_softmax(assistant.model->logits(hidden)[-1], 0);
  };
  struct Beam {
    double score;
    std::vector<std::int64_t> ids;
  };
  std::vector<Beam> beams{{0, {}}};
  for (int step = 0; step < 5; ++step) {
    std::vector<Beam> next;
    for (const auto& beam : beams) {
      const auto [best, ids] = scores(beam.ids).topk(3);
      for (int k = 0; k < 3; ++k) {
        next.push_back({beam.score + best[k].item<double>(), beam.ids});
        next.back().ids.push_back(ids[k].item<std::int64_t>());
      }
    }
    std::sort(next.begin(), next.end(),
              [](const Beam& a, const Beam& b) { return a.score > b.score; });
    next.resize(3);
    beams = next;
  }
  EXPECT_EQ(got, beams[0].ids);
}

TEST(BeamSearch, WantsGreedySettings) {
  const GenerateConfig config{.sampling = {.temperature = 0.2}, .num_beams = 5};
  EXPECT_THAT(support::error_of(Fault::usage, [&] { config.validate(); }),
              testing::HasSubstr("--temp 0"));
}

}  // namespace
}  // namespace llava::generate
