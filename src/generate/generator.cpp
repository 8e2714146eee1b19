#include "llava/generate/generator.h"

#include "beam_search.h"
#include "clock.h"

#include <algorithm>

namespace llava::generate {
namespace {

/// An answer while it grows.
class Writer {
 public:
  Writer(const Assistant& assistant, const GenerateConfig& config, std::int64_t limit)
      : stop_ids_(config.ignore_eos ? std::vector<std::int64_t>{} : assistant.stop_ids),
        text_(assistant.tokenizer(),
              config.ignore_eos ? std::vector<std::string>{} : assistant.stop_strings),
        limit_(static_cast<std::size_t>(limit)),
        is_done_(limit == 0) {
    answer_.ids.reserve(limit_);
  }

  /// Takes the next token; `on_text` sees what became certain.
  void add(std::int64_t id, const OnText& on_text) {
    answer_.ids.push_back(id);
    answer_.kept = answer_.ids.size();
    if (std::binary_search(stop_ids_.begin(), stop_ids_.end(), id)) {
      --answer_.kept;
      return end(Finish::stop, on_text);
    }
    const bool goes_on = show(text_.push(id), on_text);
    if (text_.stopped()) {
      answer_.kept = text_.tokens_before_stop();
      answer_.kept_is_exact = text_.stop_is_between_tokens();
      return end(Finish::stop, on_text);
    }
    if (!goes_on) return end(Finish::cancelled, on_text);
    if (answer_.ids.size() >= limit_) end(Finish::length, on_text);
  }

  bool is_done() const { return is_done_; }
  Answer take() { return std::move(answer_); }

 private:
  static bool show(const std::string& piece, const OnText& on_text) {
    return piece.empty() || !on_text || on_text(piece);
  }

  void end(Finish finish, const OnText& on_text) {
    show(text_.finish(), finish == Finish::cancelled ? OnText{} : on_text);
    answer_.text = text_.text();
    answer_.finish = finish;
    is_done_ = true;
  }

  std::vector<std::int64_t> stop_ids_;
  AnswerText text_;
  std::size_t limit_;
  bool is_done_;
  Answer answer_;
};

std::span<float> numbers(const torch::Tensor& logits) {
  return {logits.data_ptr<float>(), static_cast<std::size_t>(logits.numel())};
}

/// The answer of beam search as if its tokens had come one by one.
Answer write_all(Assistant& assistant, const GenerateConfig& config,
                 const std::vector<std::int64_t>& ids, std::int64_t limit, const OnText& on_text) {
  Writer writer(assistant, config, limit);
  for (const auto id : ids)
    if (!writer.is_done()) writer.add(id, on_text);
  return writer.take();
}

/// Where a row's logits may be written: its own, or new ones where it shares them or has none.
float* own_logits(Row& row, std::int64_t vocabulary) {
  auto& logits = row.logits;
  const bool is_own = logits.defined() && logits.numel() == vocabulary && logits.is_contiguous() &&
                      logits.use_count() == 1 && logits.storage().use_count() == 1;
  if (!is_own) logits = torch::empty({vocabulary}, torch::kFloat32);
  return logits.data_ptr<float>();
}

/// Whether an answer's tokens are those that a device can choose by itself.
bool is_left_to_device(const Assistant& assistant, const GenerateConfig& config) {
  return assistant.device_step && config.sampling.temperature == 0 &&
         config.sampling.repeat_penalty == 1;
}

/// One row's answer, all tokens but the first chosen on the device.
void write_on_device(Assistant& assistant, Row& row, const GenerateConfig& config, Writer& writer,
                     const OnText& on_text) {
  auto id = sample(numbers(row.logits), row.seen, config.sampling, row.random);
  writer.add(id, on_text);
  if (writer.is_done()) return;
  assistant.device_step->likeliest({id, &row.cache, nullptr}, [&](std::int64_t next) {
    row.seen.push_back(id);
    writer.add(id = next, on_text);
    return !writer.is_done();
  });
}

/// Hidden states [n, D] of the rows' tokens: their logits go to the rows.
void take_logits(Assistant& assistant, const std::vector<Row*>& rows, const torch::Tensor& hidden) {
  const auto logits = assistant.model->logits(hidden).cpu();  // [n, V]
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i]->logits = logits[static_cast<std::int64_t>(i)];
}

}  // namespace

void GenerateConfig::validate() const {
  sampling.validate();
  expect(max_new_tokens >= -1, Fault::usage,
         "max_new_tokens must be -1 (as the context allows), 0 or positive, got ", max_new_tokens);
  expect(num_beams >= 1 && num_beams <= 64, Fault::usage, "num_beams must be 1 to 64, got ",
         num_beams);
  expect(num_beams == 1 || sampling.temperature == 0, Fault::usage,
         "beam search takes the likeliest tokens; give --temp 0 with --num_beams ", num_beams);
}

std::string_view finish_name(Finish finish) {
  switch (finish) {
    case Finish::stop: return "stop";
    case Finish::length: return "length";
    case Finish::cancelled: return "cancelled";
  }
  return "";
}

Row make_row(Assistant& assistant, std::int64_t capacity, std::uint64_t seed,
             std::uint64_t stream) {
  return {.cache = model::make_cache(assistant.model->llama, capacity),
          .logits = {},
          .seen = {},
          .random = Random(seed, stream)};
}

void prefill(Assistant& assistant, Row& row, const torch::Tensor& embeds,
             const std::vector<std::int64_t>& ids) {
  torch::NoGradGuard no_grad;
  const std::int64_t tokens = embeds.size(0);
  const auto last = torch::tensor({tokens - 1}, embeds.options().dtype(torch::kInt64));
  take_logits(assistant, {&row},
              assistant.model->llama->forward(embeds, {0, tokens}, {&row.cache}, last));
  row.seen.insert(row.seen.end(), ids.begin(), ids.end());
}

void decode(Assistant& assistant, const std::vector<Row*>& rows,
            const std::vector<std::int64_t>& ids, Batching batching) {
  torch::NoGradGuard no_grad;
  const bool are_independent = assistant.token_step || assistant.rows_are_independent;
  if (batching == Batching::exact && rows.size() > 1 && !are_independent) {
    for (std::size_t i = 0; i < rows.size(); ++i) decode(assistant, {rows[i]}, {ids[i]}, batching);
    return;
  }
  if (assistant.token_step || assistant.device_step) {
    thread_local std::vector<nn::NextToken> tokens;
    tokens.clear();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      auto& row = *rows[i];
      tokens.push_back(
          {ids[i], &row.cache, own_logits(row, assistant.model->config.text.vocab_size)});
    }
    if (assistant.token_step)
      assistant.token_step->forward(tokens);
    else
      assistant.device_step->forward(tokens);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i]->seen.push_back(ids[i]);
    return;
  }
  auto& llama = assistant.model->llama;
  std::vector<std::int64_t> starts{0};
  std::vector<nn::KvCache*> caches;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    starts.push_back(starts.back() + 1);
    caches.push_back(&rows[i]->cache);
    rows[i]->seen.push_back(ids[i]);
  }
  const auto device = llama->embed_tokens->weight.device();
  const auto embeds = llama->embed_tokens(torch::tensor(ids, torch::kInt64).to(device));
  take_logits(assistant, rows, llama->forward(embeds, starts, caches));
}

std::int64_t answer_limit(const Assistant& assistant, const GenerateConfig& config,
                          std::int64_t used) {
  const std::int64_t room = std::max<std::int64_t>(assistant.context - used, 0);
  return config.max_new_tokens < 0 ? room : std::min(room, config.max_new_tokens);
}

std::vector<Answer> generate(Assistant& assistant, const std::vector<Row*>& rows,
                             const GenerateConfig& config, const OnText& on_text) {
  std::vector<Answer> answers;
  if (config.num_beams > 1) {
    for (auto* row : rows) {
      const auto limit = answer_limit(assistant, config, row->cache.length());
      const auto ids = beam_search(assistant, *row, config, limit);
      answers.push_back(write_all(assistant, config, ids, limit, on_text));
    }
    return answers;
  }
  std::vector<Writer> writers;
  for (const auto* row : rows)
    writers.emplace_back(assistant, config, answer_limit(assistant, config, row->cache.length()));
  for (auto* row : rows)
    row->seen.reserve(row->seen.size() + static_cast<std::size_t>(
                                             answer_limit(assistant, config, row->cache.length())));
  const bool one_by_one = rows.size() == 1 || config.batching == Batching::exact;
  if (one_by_one && is_left_to_device(assistant, config))
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (!writers[i].is_done()) write_on_device(assistant, *rows[i], config, writers[i], on_text);
  std::vector<Row*> going;
  std::vector<std::int64_t> ids;
  for (;;) {
    going.clear();
    ids.clear();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (writers[i].is_done()) continue;
      auto& row = *rows[i];
      const auto id = sample(numbers(row.logits), row.seen, config.sampling, row.random);
      writers[i].add(id, on_text);
      if (writers[i].is_done()) continue;
      going.push_back(&row);
      ids.push_back(id);
    }
    if (going.empty()) break;
    decode(assistant, going, ids, config.batching);
  }
  for (auto& writer : writers) answers.push_back(writer.take());
  return answers;
}

std::vector<Answer> answer(Assistant& assistant, const std::vector<input::Example>& examples,
                           const GenerateConfig& config, const std::vector<std::uint64_t>& streams,
                           const OnText& on_text, Timings* timings) {
  Timings unused;
  auto& times = timings ? *timings : unused;
  std::vector<Row> rows;
  for (const auto& example : examples) {
    expect_fits(assistant, example, 0, config.max_new_tokens == 0 ? 0 : 1);
    const auto embeds = embed(assistant, example, &times);
    const Clock clock;
    const auto tokens = embeds.size(0);
    const auto capacity = tokens + answer_limit(assistant, config, tokens);
    rows.push_back(make_row(assistant, capacity, config.seed, streams.at(rows.size())));
    prefill(assistant, rows.back(), embeds, example.ids);
    times.prefill_ms += clock.milliseconds();
    times.prefill_tokens += tokens;
  }
  std::vector<Row*> pointers;
  for (auto& row : rows) pointers.push_back(&row);
  const Clock clock;
  auto answers = generate(assistant, pointers, config, on_text);
  times.decode_ms += clock.milliseconds();
  for (const auto& each : answers)
    times.decode_tokens += static_cast<std::int64_t>(each.ids.size());
  return answers;
}

}  // namespace llava::generate
