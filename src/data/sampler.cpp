#include "llava/data/sampler.h"

#include "in_order.h"
#include "llava/base/check.h"
#include "random.h"

#include <algorithm>
#include <functional>
#include <queue>

namespace llava::data {
namespace {

using Indices = std::vector<std::int64_t>;

std::int64_t round_up(std::int64_t count, std::int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

/// Words of all turns, negative for a record without pictures.
std::int32_t modality_length(const Record& record) {
  std::int64_t words = 0;
  for (const auto& message : record.conversation.messages) words += count_words(message.text);
  words = std::clamp<std::int64_t>(words, 1, INT32_MAX);  // the reference fails on none at all
  return static_cast<std::int32_t>(record.images.empty() && record.video.empty() ? -words : words);
}

struct Tokens {
  std::int64_t all = 0, learned = 0;
};

Lengths measured(const Records& records, std::int64_t threads,
                 const std::function<Tokens(const Record&)>& tokens_of) {
  Lengths lengths;
  const auto work = [&](std::int64_t index) {
    const auto record = records.at(index);
    return std::pair(modality_length(record), tokens_of(record));
  };
  const auto fitted = [](std::int64_t count, std::int64_t least) {
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(count, least, 1 << 30));
  };
  in_order(records.size(), threads, work, [&](std::int64_t, const auto& measured) {
    lengths.words.push_back(measured.first);
    lengths.tokens.push_back(fitted(measured.second.all, 1));
    lengths.learned.push_back(fitted(measured.second.learned, 0));
  });
  return lengths;
}

/// Deals sorted samples to `parts` equally long lists, each sample to the list with the least so
/// far; when they do not divide, by turns. Source: haotian-liu/LLaVA 1.2.2, llava_trainer.py,
/// split_to_even_chunks.
std::vector<Indices> even_chunks(const Indices& sorted, const std::vector<std::int64_t>& lengths,
                                 std::size_t parts) {
  std::vector<Indices> chunks(parts);
  if (sorted.size() % parts != 0) {
    for (std::size_t i = 0; i < sorted.size(); ++i) chunks[i % parts].push_back(sorted[i]);
    return chunks;
  }
  using Load = std::pair<std::int64_t, std::size_t>;  // total, list: ties go to the lowest list
  std::priority_queue<Load, std::vector<Load>, std::greater<>> open;
  for (std::size_t i = 0; i < parts; ++i) open.emplace(0, i);
  for (const auto index : sorted) {
    const auto [total, list] = open.top();
    open.pop();
    chunks[list].push_back(index);
    if (chunks[list].size() < sorted.size() / parts)
      open.emplace(total + lengths[static_cast<std::size_t>(index)], list);
  }
  return chunks;
}

/// Positions 0 .. n-1 shuffled, then sorted by length within each megabatch and dealt evenly.
/// Source: the same file, get_length_grouped_indices.
Indices length_grouped(const std::vector<std::int64_t>& lengths, std::int64_t rows,
                       std::int64_t parts, Random& random) {
  const auto shuffled = random.permutation(lengths.size());
  const auto megabatch = static_cast<std::size_t>(rows * parts);
  Indices order;
  for (std::size_t begin = 0; begin < shuffled.size(); begin += megabatch) {
    const auto end = std::min(begin + megabatch, shuffled.size());
    Indices chunk(shuffled.begin() + static_cast<std::ptrdiff_t>(begin),
                  shuffled.begin() + static_cast<std::ptrdiff_t>(end));
    std::stable_sort(chunk.begin(), chunk.end(), [&](std::int64_t a, std::int64_t b) {
      return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
    });
    for (const auto& list : even_chunks(chunk, lengths, static_cast<std::size_t>(parts)))
      order.insert(order.end(), list.begin(), list.end());
  }
  return order;
}

/// Source: the same file, get_modality_length_grouped_indices.
Indices modality_grouped(const std::vector<std::int32_t>& words, std::int64_t rows,
                         std::int64_t parts, Random& random) {
  const bool pictures = std::any_of(words.begin(), words.end(), [](auto n) { return n > 0; });
  const bool texts = std::any_of(words.begin(), words.end(), [](auto n) { return n < 0; });
  if (!pictures || !texts) return length_grouped({words.begin(), words.end()}, rows, parts, random);

  const auto megabatch = static_cast<std::size_t>(rows * parts);
  std::vector<Indices> megabatches;
  Indices last;
  for (const int sign : {1, -1}) {
    Indices own, lengths;
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] * sign < 0) continue;
      own.push_back(static_cast<std::int64_t>(i));
      lengths.push_back(words[i] * sign);
    }
    Indices order = length_grouped(lengths, rows, parts, random);
    for (auto& position : order) position = own[static_cast<std::size_t>(position)];
    // The last megabatch, whole or not, goes to the very end.
    const auto whole = (order.size() - 1) / megabatch;
    for (std::size_t i = 0; i < whole; ++i)
      megabatches.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(i * megabatch),
                               order.begin() + static_cast<std::ptrdiff_t>((i + 1) * megabatch));
    last.insert(last.end(), order.begin() + static_cast<std::ptrdiff_t>(whole * megabatch),
                order.end());
  }
  Indices order;
  for (const auto i : random.permutation(megabatches.size())) {
    const auto& chunk = megabatches[static_cast<std::size_t>(i)];
    order.insert(order.end(), chunk.begin(), chunk.end());
  }
  std::sort(last.begin(), last.end());
  order.insert(order.end(), last.begin(), last.end());
  return order;
}

/// A sample of a global batch: where it stands there, its tokens, and the supervised ones.
struct Row {
  std::size_t position = 0;
  std::int64_t tokens = 0, learned = 0;
};

/// A micro-batch being filled.
struct Bin {
  std::vector<Row> rows;
  std::int64_t tokens = 0;
};

bool has_fewer_tokens(const Bin& a, const Bin& b) { return a.tokens < b.tokens; }

/// Swaps a row of the fullest bin for a shorter one of another while that leaves neither as full.
void even_out(std::vector<Bin>& bins) {
  for (std::size_t tries = 8 * bins.size(); tries > 0; --tries) {
    auto& full = *std::max_element(bins.begin(), bins.end(), has_fewer_tokens);
    Bin* other = nullptr;
    Row *give = nullptr, *take = nullptr;
    auto fullest = full.tokens;  // of the two, after the swap
    for (auto& bin : bins) {
      for (auto& large : full.rows) {
        for (auto& small : bin.rows) {
          const auto moved = large.tokens - small.tokens;
          const auto after = std::max(full.tokens - moved, bin.tokens + moved);
          if (moved > 0 && after < fullest) {
            other = &bin, give = &large, take = &small;
            fullest = after;
          }
        }
      }
    }
    if (!other) return;
    const auto moved = give->tokens - take->tokens;
    std::swap(*give, *take);
    full.tokens -= moved;
    other->tokens += moved;
  }
}

/// Deals rows, which are sorted, longest first, each to the bin with the fewest tokens that has
/// room.
std::vector<Bin> balanced_bins(const std::vector<Row>& sorted, std::size_t num_bins,
                               std::size_t max_rows) {
  std::vector<Bin> bins(num_bins);
  using Load = std::pair<std::int64_t, std::size_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> open;
  for (std::size_t i = 0; i < num_bins; ++i) open.emplace(0, i);
  for (const auto& row : sorted) {
    const auto i = open.top().second;
    open.pop();
    bins[i].rows.push_back(row);
    bins[i].tokens += row.tokens;
    if (bins[i].rows.size() < max_rows) open.emplace(bins[i].tokens, i);
  }
  even_out(bins);
  return bins;
}

/// Bins within the token budget, as few for each rank as dealing finds.
std::vector<Bin> budgeted_bins(const std::vector<Row>& sorted, const SamplerConfig& config) {
  const auto most =
      std::max<std::int64_t>(static_cast<std::int64_t>(sorted.size()) / config.world, 1);
  std::int64_t tokens = 0;  // a sample beyond the budget fills one bin, not several
  for (const auto& row : sorted) tokens += std::min(row.tokens, config.token_budget);
  const auto unit = config.world * config.token_budget;
  for (auto micro = std::clamp<std::int64_t>((tokens + unit - 1) / unit, 1, most);; ++micro) {
    auto bins =
        balanced_bins(sorted, static_cast<std::size_t>(micro * config.world), sorted.size());
    const bool fits = std::all_of(bins.begin(), bins.end(), [&](const Bin& bin) {
      return bin.rows.size() <= 1 || bin.tokens <= config.token_budget;
    });
    if (fits || micro >= most) return bins;
  }
}

/// What a rank has been dealt.
struct Hand {
  std::vector<Bin> bins;
  std::int64_t tokens = 0, learned = 0;
};

/// The most tokens that dealing by supervised ones may bring together.
struct Limits {
  std::int64_t rank = 0, bin = 0;
};

/// Swaps the pair of rows of two ranks that brings their supervised tokens closest together; false
/// if none brings them closer within the limits.
bool swap_learned(Hand& more, Hand& less, const Limits& limits) {
  Bin *from = nullptr, *to = nullptr;
  Row *give = nullptr, *take = nullptr;
  auto gap = more.learned - less.learned;
  for (auto& full : more.bins) {
    for (auto& bin : less.bins) {
      for (auto& large : full.rows) {
        for (auto& small : bin.rows) {
          const auto moved = large.tokens - small.tokens;
          const auto after =
              std::abs(more.learned - less.learned - 2 * (large.learned - small.learned));
          if (after >= gap || more.tokens - moved > limits.rank ||
              less.tokens + moved > limits.rank || full.tokens - moved > limits.bin ||
              bin.tokens + moved > limits.bin)
            continue;
          gap = after;
          from = &full, to = &bin, give = &large, take = &small;
        }
      }
    }
  }
  if (!give) return false;
  const auto moved = give->tokens - take->tokens, learned = give->learned - take->learned;
  std::swap(*give, *take);
  from->tokens -= moved, more.tokens -= moved, more.learned -= learned;
  to->tokens += moved, less.tokens += moved, less.learned += learned;
  return true;
}

/// Evens out supervised tokens among ranks. The fullest rank and micro-batch get at most a percent
/// more tokens, none more than the budget.
void even_out_learned(std::vector<Hand>& hands, std::int64_t token_budget) {
  Limits limits;
  std::int64_t sum = 0;
  for (const auto& hand : hands) {
    sum += hand.tokens;
    limits.rank = std::max(limits.rank, hand.tokens);
    for (const auto& bin : hand.bins) limits.bin = std::max(limits.bin, bin.tokens);
  }
  limits.rank = std::max(limits.rank, sum * 101 / 100 / static_cast<std::int64_t>(hands.size()));
  limits.bin = token_budget > 0 ? std::max(limits.bin, token_budget) : limits.bin * 101 / 100;
  const auto fewer = [](const Hand& a, const Hand& b) { return a.learned < b.learned; };
  for (std::size_t tries = 8 * hands.size(); tries > 0; --tries) {
    const auto [least, most] = std::minmax_element(hands.begin(), hands.end(), fewer);
    bool swapped = swap_learned(*most, *least, limits);
    for (auto hand = hands.begin(); !swapped && hand != hands.end(); ++hand)
      swapped = swap_learned(*most, *hand, limits) || swap_learned(*hand, *least, limits);
    if (!swapped) return;
  }
}

}  // namespace

Lengths estimate_lengths(const Records& records, std::int64_t picture_rows, std::int64_t threads) {
  return measured(records, threads, [&](const Record& record) {
    Tokens tokens{.all = 40};  // system text
    for (const auto& message : record.conversation.messages) {
      const auto own = static_cast<std::int64_t>(message.text.size()) / 4;
      tokens.all += 8 + own;
      if (message.role == text::Role::assistant) tokens.learned += own + 1;
    }
    const auto pictures = record.images.size() + !record.video.empty();
    tokens.all += picture_rows * static_cast<std::int64_t>(pictures);
    return tokens;
  });
}

Lengths measure_lengths(const Records& records, const input::Encoder& encoder,
                        const MediaConfig& media, std::int64_t threads) {
  return measured(records, threads, [&](const Record& record) {
    const auto example = measure_example(record, encoder, media);
    return Tokens{example.num_tokens(), input::num_learned(example)};
  });
}

Sampler::Sampler(Lengths lengths, SamplerConfig config)
    : lengths_(std::move(lengths)), config_(config) {
  expect(!lengths_.words.empty() && lengths_.words.size() == lengths_.tokens.size(), Fault::data,
         "the training set holds no samples");
  expect(config_.rows > 0, Fault::usage, "per_device_train_batch_size must be positive, got ",
         config_.rows);
  expect(config_.accumulation > 0, Fault::usage,
         "gradient_accumulation_steps must be positive, got ", config_.accumulation);
  expect(config_.token_budget >= 0, Fault::usage,
         "tokens_per_micro_batch must not be negative, got ", config_.token_budget);
  expect(config_.token_budget == 0 || config_.balanced, Fault::usage,
         "tokens_per_micro_batch needs --sampler balanced");
  expect(config_.world > 0 && config_.rank >= 0 && config_.rank < config_.world, Fault::usage,
         "rank ", config_.rank, " of ", config_.world, " does not exist");
}

std::vector<std::int64_t> epoch_order(const Lengths& lengths, const SamplerConfig& config,
                                      std::int64_t epoch) {
  const auto count = static_cast<std::int64_t>(lengths.words.size());
  Random random(config.seed, static_cast<std::uint64_t>(epoch));
  Indices order;
  if (config.order == Order::grouped) {
    order =
        modality_grouped(lengths.words, config.rows, config.world * config.accumulation, random);
  } else if (config.order == Order::shuffled) {
    order = random.permutation(lengths.words.size());
  } else {
    order.resize(lengths.words.size());
    std::iota(order.begin(), order.end(), 0);
  }
  // Source: accelerate 0.21, BatchSamplerShard with even_batches; one process completes nothing.
  const auto whole = config.world > 1 ? round_up(count, config.rows * config.world) : count;
  for (std::int64_t i = 0; static_cast<std::int64_t>(order.size()) < whole; ++i)
    order.push_back(order[static_cast<std::size_t>(i)]);
  return order;
}

std::int64_t Sampler::steps_per_epoch() const {
  const auto global = config_.rows * config_.accumulation * config_.world;
  return (static_cast<std::int64_t>(lengths_.words.size()) + global - 1) / global;
}

std::vector<std::int64_t> Sampler::members(std::int64_t step) {
  const auto epoch = step / steps_per_epoch();
  if (epoch != epoch_) {
    order_ = epoch_order(lengths_, config_, epoch);
    epoch_ = epoch;
  }
  const auto global = config_.rows * config_.accumulation * config_.world;
  const auto begin = step % steps_per_epoch() * global;
  const auto end = std::min(begin + global, static_cast<std::int64_t>(order_.size()));
  return {order_.begin() + begin, order_.begin() + end};
}

Plan Sampler::step(std::int64_t step) {
  const auto all = members(step);
  if (config_.balanced)
    return std::move(deal(all, lengths_, config_)[static_cast<std::size_t>(config_.rank)]);
  // Batch number c goes to rank c mod world. Source: accelerate 0.21, BatchSamplerShard.
  Plan plan;
  const auto count = static_cast<std::int64_t>(all.size());
  for (auto begin = config_.rank * config_.rows; begin < count;
       begin += config_.rows * config_.world)
    plan.emplace_back(all.begin() + begin, all.begin() + std::min(begin + config_.rows, count));
  return plan;
}

std::vector<Plan> deal(const std::vector<std::int64_t>& members, const Lengths& lengths,
                       const SamplerConfig& config) {
  std::vector<Row> rows;
  for (std::size_t i = 0; i < members.size(); ++i) {
    const auto sample = static_cast<std::size_t>(members[i]);
    rows.push_back(
        {i, lengths.tokens[sample], lengths.learned.empty() ? 0 : lengths.learned[sample]});
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.tokens > b.tokens; });
  const auto world = static_cast<std::size_t>(config.world);
  const auto unit = config.rows * config.world;
  const auto micro = (static_cast<std::int64_t>(members.size()) + unit - 1) / unit;
  auto bins = config.token_budget > 0 ? budgeted_bins(rows, config)
                                      : balanced_bins(rows, static_cast<std::size_t>(micro) * world,
                                                      static_cast<std::size_t>(config.rows));
  // The largest together and first, so that ranks keep pace and memory peaks at once. Of each lap's
  // bins the largest goes to the rank that has the least so far.
  std::stable_sort(bins.begin(), bins.end(),
                   [](const Bin& a, const Bin& b) { return has_fewer_tokens(b, a); });
  std::vector<Hand> hands(world);
  std::vector<std::size_t> ranks(world);
  std::iota(ranks.begin(), ranks.end(), 0);
  for (std::size_t i = 0; i < bins.size(); ++i) {
    if (i % world == 0)
      std::stable_sort(ranks.begin(), ranks.end(), [&](std::size_t a, std::size_t b) {
        return hands[a].tokens < hands[b].tokens;
      });
    auto& hand = hands[ranks[i % world]];
    hand.tokens += bins[i].tokens;
    for (const auto& row : bins[i].rows) hand.learned += row.learned;
    hand.bins.push_back(std::move(bins[i]));
  }
  if (world > 1 && !lengths.learned.empty()) even_out_learned(hands, config.token_budget);

  std::vector<Plan> plans(world);
  for (std::size_t rank = 0; rank < world; ++rank) {
    for (auto& bin : hands[rank].bins) {
      auto& micro_batch = plans[rank].emplace_back();
      std::sort(bin.rows.begin(), bin.rows.end(),
                [](const Row& a, const Row& b) { return a.position < b.position; });
      for (const auto& row : bin.rows) micro_batch.push_back(members[row.position]);
    }
  }
  return plans;
}

}  // namespace llava::data
