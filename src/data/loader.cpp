#include "llava/data/loader.h"

#include "llava/base/config.h"
#include "llava/base/log.h"

#include <chrono>

namespace llava::data {
namespace {

/// A micro-batch that teaches nothing: one token, not learned.
input::Batch idle_batch(bool pinned) {
  input::Example nothing;
  nothing.id = "(none)";
  nothing.ids = {0};
  nothing.labels = {input::kIgnore};
  return input::collate({nothing}, pinned);
}

}  // namespace

OnBadImage parse_on_bad_image(const std::string& word) {
  if (word == "fail") return OnBadImage::fail;
  if (word == "skip") return OnBadImage::skip;
  fail(Fault::usage, "--on_bad_image: expected fail or skip, found \"", word, "\"");
}

OnOverlength parse_on_overlength(const std::string& word) {
  if (word == "error") return OnOverlength::error;
  if (word == "drop") return OnOverlength::drop;
  if (word == "truncate") return OnOverlength::truncate;
  fail(Fault::usage, "--on_overlength: expected error, drop or truncate, found \"", word, "\"");
}

Loader::Loader(const Records& records, const input::Encoder& encoder, Sampler sampler,
               LoaderConfig config)
    : records_(records),
      encoder_(encoder),
      sampler_(std::move(sampler)),
      config_(std::move(config)) {
  expect(config_.workers >= 1, Fault::usage, "dataloader_num_workers must be at least 1, got ",
         config_.workers);
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
}

void Loader::seek(std::int64_t step) {
  const std::lock_guard lock(mutex_);
  pending_.clear();  // workers keep what they are at, and nobody asks for it
  rows_ahead_ = 0;
  next_planned_ = step;
  changed_.notify_all();
}

Step Loader::next() {
  const auto began = std::chrono::steady_clock::now();
  std::shared_ptr<Pending> pending;
  {
    std::unique_lock lock(mutex_);
    if (!started_) {
      for (std::int64_t i = 0; i < config_.workers; ++i) workers_.start([this] { work(); });
      started_ = true;
    }
    changed_.wait(
        lock, [&] { return failure_ || (!pending_.empty() && pending_.front()->unfinished == 0); });
    if (failure_) std::rethrow_exception(failure_);
    pending = std::move(pending_.front());
    pending_.pop_front();
    rows_ahead_ -= pending->num_rows;
  }
  changed_.notify_all();
  seconds_waited_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return collect(*pending);
}

Step Loader::collect(Pending& pending) {
  Step step;
  step.step = pending.step;
  for (auto& micro_batch : pending.micro_batches) {
    for (const auto& row : micro_batch.rows) {
      if (row.error) std::rethrow_exception(row.error);
      if (!row.note.empty()) report(row);
      if (row.losses.skipped > 0) step.skipped.push_back(row.note);
      step.losses.skipped += row.losses.skipped;
      step.losses.dropped += row.losses.dropped;
      step.losses.truncated += row.losses.truncated;
      step.losses.unsupervised += row.losses.unsupervised;
      step.num_samples += row.losses.skipped + row.losses.dropped == 0;
    }
    if (micro_batch.error) std::rethrow_exception(micro_batch.error);
    step.num_tokens += micro_batch.batch.num_tokens();
    step.num_learned += micro_batch.batch.num_learned();
    step.micro_batches.push_back(std::move(micro_batch.batch));
  }
  return step;
}

/// Says what happened to a sample; only the first few, the rest is counted.
void Loader::report(const Row& row) {
  constexpr std::int64_t kShown = 10;
  if (notes_shown_ < kShown) log::warn(row.note);
  if (++notes_shown_ == kShown) log::warn("further samples of this kind are only counted");
}

void Loader::work() {
  while (const auto job = take_job()) {
    prepare(*job->row);
    finish(*job);
  }
}

std::optional<Loader::Job> Loader::take_job() {
  std::unique_lock lock(mutex_);
  std::optional<Job> job;
  try {
    changed_.wait(lock, [&] { return stopped_ || failure_ || (job = find_job()); });
  } catch (...) {  // the sampler's; next() rethrows it
    failure_ = std::current_exception();
    changed_.notify_all();
    return std::nullopt;
  }
  return stopped_ || failure_ ? std::nullopt : job;
}

/// The next sample to prepare, planning another step when there is room for it. Under the lock.
std::optional<Loader::Job> Loader::find_job() {
  const auto room = static_cast<std::size_t>(2 * config_.workers);
  for (auto& pending : pending_) {
    if (pending->next_micro == pending->micro_batches.size()) continue;
    auto& micro_batch = pending->micro_batches[pending->next_micro];
    Job job{pending, &micro_batch, &micro_batch.rows[pending->next_row]};
    if (++pending->next_row == micro_batch.rows.size()) {
      pending->next_row = 0;
      ++pending->next_micro;
    }
    return job;
  }
  // One step beyond the one being waited for, and more of them only while they are small.
  if (pending_.size() >= 2 && rows_ahead_ >= room) return std::nullopt;
  auto pending = std::make_shared<Pending>();
  pending->step = next_planned_++;
  for (const auto& indices : sampler_.step(pending->step)) {
    auto& micro_batch = pending->micro_batches.emplace_back();
    micro_batch.unfinished = indices.size();
    for (const auto index : indices) micro_batch.rows.emplace_back().index = index;
    pending->num_rows += indices.size();
  }
  pending->unfinished = pending->micro_batches.size();
  rows_ahead_ += pending->num_rows;
  pending_.push_back(std::move(pending));
  return find_job();
}

/// Reads and encodes one sample; what goes wrong is kept with it.
void Loader::prepare(Row& row) const try {
  const auto record = records_.at(row.index);
  auto example = load_example(record, encoder_, config_.media);
  const auto tokens = example.num_tokens();
  if (config_.max_tokens > 0 && tokens > config_.max_tokens) {
    const std::string what = record.where + " has " + std::to_string(tokens) +
                             " tokens, more than " + "model_max_length " +
                             std::to_string(config_.max_tokens);
    expect(config_.on_overlength != OnOverlength::error, Fault::data, what,
           "; raise it, or choose --on_overlength drop or truncate");
    const bool cut = config_.on_overlength == OnOverlength::truncate;
    row.note = what + (cut ? "; it is cut" : "; it is left out");
    (cut ? row.losses.truncated : row.losses.dropped) = 1;
    if (!cut) return;
    input::truncate(example, config_.max_tokens);
  }
  if (input::num_learned(example) == 0) {
    row.losses.unsupervised = 1;
    row.note = record.where + ": nothing is learned from it";
  }
  row.example = std::move(example);
} catch (const Error& error) {
  const bool skip = config_.on_bad_image == OnBadImage::skip && error.fault() == Fault::data &&
                    row.losses.dropped + row.losses.truncated == 0;
  if (skip) {
    row.losses.skipped = 1;
    row.note = std::string(error.what()) + "; the sample is skipped";
  } else {
    row.error = std::current_exception();
  }
} catch (...) {  // next() rethrows it
  row.error = std::current_exception();
}

/// Collates the micro-batch when this was its last sample.
void Loader::finish(const Job& job) {
  auto& micro_batch = *job.micro_batch;
  {
    const std::lock_guard lock(mutex_);
    if (--micro_batch.unfinished > 0) return;
  }
  try {
    std::vector<input::Example> examples;
    for (auto& row : micro_batch.rows)
      if (row.example) examples.push_back(std::move(*row.example));
    micro_batch.batch =
        examples.empty() ? idle_batch(config_.pinned) : input::collate(examples, config_.pinned);
  } catch (...) {  // next() rethrows it
    micro_batch.error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    --job.pending->unfinished;
  }
  changed_.notify_all();
}

}  // namespace llava::data
