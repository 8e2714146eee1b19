// Prompts -> answers: the prompt once through the decoder, then a token at a time, keys and values
// kept, until a stop token, a stop string or the limit.
//   T tokens of the prompt, pictures spliced in   D width   V vocabulary   B rows answered together
#pragma once

#include "llava/generate/answer_text.h"
#include "llava/generate/assistant.h"
#include "llava/generate/sampling.h"

#include <functional>
#include <string_view>

namespace llava::generate {

/// How the rows of a batch take their next tokens together.
enum class Batching {
  exact,  // a row's answer is the same bits whatever its neighbours
  fast    // one product for all rows, which may round differently from a product for one
};

struct GenerateConfig {
  SamplingConfig sampling = {};
  std::int64_t max_new_tokens = 512;  // -1: until the context is full
  std::int64_t num_beams = 1;
  double length_penalty = 1;
  bool ignore_eos = false;
  std::uint64_t seed = 42;  // of every draw; no field of its own: --seed is common to all verbs
  Batching batching = Batching::exact;

  template <class Field>
  void fields(Field& field) {
    field("max_new_tokens", max_new_tokens, "tokens an answer may have; -1: as the context allows");
    sampling.fields(field);
    field("num_beams", num_beams, "beams of a beam search; 1: none");
    field("length_penalty", length_penalty, "beam search: above 1 favours longer answers");
    field("ignore_eos", ignore_eos, "go on to max_new_tokens, whatever the model says");
  }

  /// Throws Error(usage) naming the field.
  void validate() const;
};

enum class Finish { stop, length, cancelled };
std::string_view finish_name(Finish finish);  // "stop", "length", "cancelled"

struct Answer {
  std::vector<std::int64_t> ids;  // generated, with the stop token that ended them
  std::string text;               // without special tokens, stop strings and outer white space
  Finish finish = Finish::length;
  std::size_t kept = 0;       // of ids: those before the stop token or string
  bool kept_is_exact = true;  // whether the text before a stop string ends with a token
};

/// One prompt and its answer so far: keys and values, and the logits of what comes next.
struct Row {
  nn::KvCache cache;
  torch::Tensor logits;            // [V] float32, on the CPU
  std::vector<std::int64_t> seen;  // ids of prompt and answer, for the repetition penalty
  Random random{0};
};

/// Sees an answer's text as it grows, and returns false to end it.
using OnText = std::function<bool(std::string_view text)>;

/// An empty row with room for `capacity` tokens. Rows draw from random streams of their own.
Row make_row(Assistant& assistant, std::int64_t capacity, std::uint64_t seed, std::uint64_t stream);

/// Puts embeds [T, D] behind what the row holds. `ids` are noted as seen.
void prefill(Assistant& assistant, Row& row, const torch::Tensor& embeds,
             const std::vector<std::int64_t>& ids);

/// Puts one token behind each row. Throws Error(capacity) when a row's cache is full.
void decode(Assistant& assistant, const std::vector<Row*>& rows,
            const std::vector<std::int64_t>& ids, Batching batching);

/// Most tokens that an answer may have after `used` tokens.
std::int64_t answer_limit(const Assistant& assistant, const GenerateConfig& config,
                          std::int64_t used);

/// Answers rows that were prefilled. `on_text` needs a single row. A row then holds its prompt and,
/// except after beam search, its answer without the last token.
std::vector<Answer> generate(Assistant& assistant, const std::vector<Row*>& rows,
                             const GenerateConfig& config, const OnText& on_text = {});

/// Examples -> answers, in order: what a caller without a conversation needs. `streams`: the random
/// stream of each, so that draws do not depend on batches. Throws Error(capacity) if one does not
/// fit.
std::vector<Answer> answer(Assistant& assistant, const std::vector<input::Example>& examples,
                           const GenerateConfig& config, const std::vector<std::uint64_t>& streams,
                           const OnText& on_text = {}, Timings* timings = nullptr);

}  // namespace llava::generate
