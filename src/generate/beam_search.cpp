#include "beam_search.h"

#include <algorithm>
#include <cmath>

namespace llava::generate {
namespace {

/// An answer still growing. Its row's logits are of the token that comes next.
struct Beam {
  Row row;
  std::vector<std::int64_t> ids;
  double score = 0;  // sum of log-probabilities
};

/// A beam and one token more.
struct Candidate {
  std::size_t beam;
  std::int64_t id;
  double score;
};

struct Finished {
  std::vector<std::int64_t> ids;
  double score;  // over length ^ length_penalty
};

/// The likeliest `count` continuations of all beams, the likeliest first.
std::vector<Candidate> continuations(const std::vector<Beam>& beams, double penalty,
                                     std::size_t count) {
  std::vector<Candidate> all;
  for (std::size_t beam = 0; beam < beams.size(); ++beam) {
    auto log_probs = torch::log_softmax(beams[beam].row.logits, 0).contiguous();  // [V]
    std::span<float> scores(log_probs.data_ptr<float>(), log_probs.numel());
    likeliest(scores);  // throws unless they are numbers
    penalize(scores, beams[beam].row.seen, penalty);
    for (std::size_t id = 0; id < scores.size(); ++id)
      all.push_back({beam, static_cast<std::int64_t>(id), beams[beam].score + scores[id]});
  }
  count = std::min(count, all.size());
  const auto better = [](const Candidate& a, const Candidate& b) { return a.score > b.score; };
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count), all.end(),
                    better);
  all.resize(count);
  return all;
}

/// A row that holds what `row` holds; `spare` rows hold its first `shared` tokens already.
Row branch(Assistant& assistant, const Row& row, std::vector<Row>& spare, std::int64_t shared) {
  if (spare.empty()) spare.push_back(make_row(assistant, row.cache.capacity(), 0, 0));
  Row copy = std::move(spare.back());
  spare.pop_back();
  copy.cache.copy_from(row.cache, std::min(copy.cache.length(), shared));
  copy.seen = row.seen;
  return copy;
}

/// The beams that `chosen` makes of `beams`: a row moves to its last child, and its other children
/// get copies. All rows share the first `shared` tokens.
std::vector<Beam> next_beams(Assistant& assistant, std::vector<Beam> beams,
                             const std::vector<Candidate>& chosen, std::int64_t shared) {
  std::vector<std::size_t> children(beams.size());
  for (const auto& candidate : chosen) ++children[candidate.beam];
  std::vector<Row> spare;
  for (std::size_t i = 0; i < beams.size(); ++i)
    if (children[i] == 0) spare.push_back(std::move(beams[i].row));

  std::vector<Beam> next;
  for (const auto& candidate : chosen) {
    auto& parent = beams[candidate.beam];
    const bool is_last = --children[candidate.beam] == 0;
    next.push_back(
        {.row = is_last ? std::move(parent.row) : branch(assistant, parent.row, spare, shared),
         .ids = parent.ids,
         .score = candidate.score});
    next.back().ids.push_back(candidate.id);
  }
  return next;
}

/// The finished answers, the best first and at most as many as there are beams.
void finish(std::vector<Finished>& finished, Finished answer, std::size_t num_beams) {
  const auto at = std::find_if(finished.begin(), finished.end(),
                               [&](const Finished& other) { return other.score < answer.score; });
  finished.insert(at, std::move(answer));
  if (finished.size() > num_beams) finished.pop_back();
}

}  // namespace

std::vector<std::int64_t> beam_search(Assistant& assistant, Row& row, const GenerateConfig& config,
                                      std::int64_t limit) {
  if (limit == 0) return {};
  const auto num_beams = static_cast<std::size_t>(config.num_beams);
  const auto stop_ids = config.ignore_eos ? std::vector<std::int64_t>{} : assistant.stop_ids;
  const std::size_t count = std::max<std::size_t>(2, 1 + stop_ids.size()) * num_beams;
  const std::int64_t shared = row.cache.length();
  const std::size_t seen = row.seen.size();
  std::vector<Finished> finished;
  std::vector<Beam> beams;
  beams.push_back({.row = std::move(row), .ids = {}, .score = 0});
  for (std::int64_t length = 1;; ++length) {
    const double scale = std::pow(static_cast<double>(length), config.length_penalty);
    std::vector<Candidate> going;
    const auto candidates = continuations(beams, config.sampling.repeat_penalty, count);
    for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
      const auto& candidate = candidates[rank];
      const bool ends =
          length == limit || std::binary_search(stop_ids.begin(), stop_ids.end(), candidate.id);
      if (!ends && going.size() < num_beams) going.push_back(candidate);
      if (!ends || rank >= num_beams) continue;
      auto ids = beams[candidate.beam].ids;
      ids.push_back(candidate.id);
      finish(finished, {std::move(ids), candidate.score / scale}, num_beams);
    }
    const bool can_improve = !going.empty() && (finished.size() < num_beams ||
                                                going[0].score / scale > finished.back().score);
    if (!can_improve) {
      row = std::move(beams[0].row);
      row.cache.truncate(shared);
      row.seen.resize(seen);
      return finished.at(0).ids;
    }

    beams = next_beams(assistant, std::move(beams), going, shared);
    std::vector<Row*> rows;
    std::vector<std::int64_t> ids;
    for (auto& beam : beams) {
      rows.push_back(&beam.row);
      ids.push_back(beam.ids.back());
    }
    decode(assistant, rows, ids, config.batching);
  }
}

}  // namespace llava::generate
