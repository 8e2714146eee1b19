// The token loop takes no memory: every operator new of this program is counted, and with it every
// tensor, since each is an object of its own.
#include "llava/generate/generator.h"

#include "scripted.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<std::int64_t> allocations = 0;
}

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* room = std::malloc(bytes ? bytes : 1)) return room;
  throw std::bad_alloc();
}
void operator delete(void* room) noexcept { std::free(room); }
void operator delete(void* room, std::size_t) noexcept { std::free(room); }

namespace llava::generate {
namespace {

TEST(TokenLoop, TakesNoMemory) {
  if (!nn::TokenStep::is_possible()) GTEST_SKIP() << "this CPU has no AVX512-BF16";
  auto config = wordy_config();
  config.text.hidden_size = 64;
  config.text.intermediate_size = 128;
  config.text.head_dim = 16;
  for (const std::int64_t bits : {16, 8, 4}) {
    auto model = test::tiny_model(config, 3, torch::kBFloat16);
    pack_for_answers(model, bits);
    auto assistant = make_assistant(model);
    assistant.token_step = model::make_token_step(model);
    ASSERT_TRUE(assistant.token_step);
    torch::NoGradGuard no_grad;
    SamplingConfig greedy, drawn;
    drawn = {.temperature = 0.8, .top_k = 50, .top_p = 0.9, .min_p = 0.01, .repeat_penalty = 1.1};
    for (const auto& sampling : {greedy, drawn}) {
      std::vector<Row> rows;
      std::vector<Row*> pointers;
      for (std::uint64_t i = 0; i < 3; ++i) {
        rows.push_back(make_row(assistant, 200, 1, i));
        const auto embeds = torch::randn({5, 64}).to(torch::kBFloat16);
        prefill(assistant, rows.back(), embeds, {1, 2, 3, 4, 5});
        rows.back().seen.reserve(200);
      }
      for (auto& row : rows) pointers.push_back(&row);
      std::vector<std::int64_t> ids(3);
      const auto next = [&] {
        for (std::size_t i = 0; i < 3; ++i) {
          auto& logits = rows[i].logits;
          ids[i] =
              sample({logits.data_ptr<float>(), 32000}, rows[i].seen, sampling, rows[i].random);
        }
        decode(assistant, pointers, ids, Batching::exact);
      };
      for (int warm = 0; warm < 50; ++warm) next();  // room that doubles is doubled, up to 94 ids
      const auto before = allocations.load();
      for (int token = 0; token < 30; ++token) next();
      EXPECT_EQ(allocations.load() - before, 0) << bits << " bits";
    }
  }
}

}  // namespace
}  // namespace llava::generate
