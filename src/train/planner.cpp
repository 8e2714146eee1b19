#include "llava/train/planner.h"

#include "llava/data/sample.h"
#include "llava/model/adapter.h"
#include "llava/nn/lora.h"
#include "llava/train/flops.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace llava::train {
namespace {

constexpr double kLogitsChunk = 128 << 20;  // nn/loss.cpp, kChunkBytes
constexpr double kSlotValues = 1 << 26;     // train/optimizer.cpp, kSlotValues
constexpr double kBucketsInFlight = 4;      // dist/zero.cpp: one filling, two on their way; a copy
constexpr double kBlock = 256;              // train/eight_bit.h: values of one fp32 scale
constexpr double kHostLink = 20e9;          // bytes/s of GPU <-> host and of an update on the CPU
constexpr std::int64_t kMeasured = 10'000;  // samples of a set that are looked at
constexpr std::int64_t kSimulatedRanks = 64;  // more change little: balance depends on samples each

double width_of(const TrainConfig& train) { return train.model.bf16 ? 2 : 4; }

double share(double n) { return (n - 1) / n; }  // of a buffer that a ring sends

std::int64_t layers_of(const PlanRequest& request) { return request.model.text.num_hidden_layers; }

/// What learns, for flops.
Learning learning_of(const Tune& tune, const Counts& counts) {
  Learning learning;
  learning.vision = tune.vision == Tuning::full;
  learning.projector = tune.projector == Tuning::full;
  learning.llm = tune.llm == Tuning::full;
  learning.lora = tune.llm == Tuning::lora;
  learning.lora_parameters = static_cast<std::int64_t>(counts.lora);
  return learning;
}

// ── Batches ─────────────────────────────────────────────────────────────────────────────────────

struct Dealt {
  double micro_tokens = 0;  // of the largest micro-batch seen
  double pairs = 0;         // mean of a sample
  double tokens = 0;        // mean of a sample
  double micro_steps = 0;
  double imbalance = 1, padded = 1;
};

/// The tokens that the reference would compute for a batch in this order: every micro-step lasts as
/// long as the longest sample of any rank.
/// Source: haotian-liu/LLaVA 1.2.2, llava_trainer.py and DataCollatorForSupervisedDataset.
double padded_tokens(const std::vector<std::int32_t>& tokens, std::int64_t rows_of_a_micro_step) {
  double padded = 0;
  for (std::size_t begin = 0; begin < tokens.size();
       begin += static_cast<std::size_t>(rows_of_a_micro_step)) {
    const auto end =
        std::min(tokens.size(), begin + static_cast<std::size_t>(rows_of_a_micro_step));
    const auto longest = *std::max_element(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                           tokens.begin() + static_cast<std::ptrdiff_t>(end));
    padded += static_cast<double>(longest) * static_cast<double>(end - begin);
  }
  return padded;
}

/// Deals a few global batches as the sampler does.
Dealt deal_some(const PlanRequest& request) {
  constexpr int kBatches = 4;
  const auto& train = request.train.data;
  const auto limit = request.train.model.model_max_length;
  data::SamplerConfig config;
  config.rows = train.per_device_train_batch_size;
  config.accumulation = train.gradient_accumulation_steps;
  config.token_budget = train.tokens_per_micro_batch;
  config.balanced = train.sampler == "balanced";
  config.world = std::min(request.world(), kSimulatedRanks);

  Dealt dealt;
  const auto count = static_cast<std::size_t>(config.rows * config.accumulation * config.world);
  const auto& all = request.samples.tokens;
  double total = 0, slowest = 0, padded = 0, pairs = 0;
  for (int batch = 0; batch < kBatches; ++batch) {
    data::Lengths lengths;
    for (std::size_t i = 0; i < count; ++i) {
      // Multiplication by an odd number walks over all samples in a scattered order.
      const auto at = ((batch * count + i) * 2654435761U) % all.size();
      lengths.tokens.push_back(std::min<std::int32_t>(all[at], static_cast<std::int32_t>(limit)));
      lengths.words.push_back(lengths.tokens.back());
      pairs += 0.5 * lengths.tokens.back() * lengths.tokens.back();
    }
    padded += padded_tokens(lengths.tokens, config.rows * config.world);
    std::vector<std::int64_t> members(count);
    std::iota(members.begin(), members.end(), 0);
    double most = 0;
    for (const auto& plan : data::deal(members, lengths, config)) {
      double of_rank = 0;
      for (const auto& micro : plan) {
        double tokens = 0;
        for (const auto i : micro) tokens += lengths.tokens[static_cast<std::size_t>(i)];
        dealt.micro_tokens = std::max(dealt.micro_tokens, tokens);
        of_rank += tokens;
      }
      dealt.micro_steps = std::max(dealt.micro_steps, static_cast<double>(plan.size()));
      most = std::max(most, of_rank);
      total += of_rank;
    }
    slowest += most * static_cast<double>(config.world);
  }
  const double samples = static_cast<double>(count) * kBatches;
  dealt.tokens = total / samples;
  dealt.pairs = pairs / samples;
  dealt.imbalance = slowest / total;
  dealt.padded = padded / slowest;
  return dealt;
}

// ── Bytes ───────────────────────────────────────────────────────────────────────────────────────

/// Values that a token leaves in one layer for backward. Kept in any case: the two inputs of norms,
/// q, k, v, attention's output, gate and up; for gradients of weights also the two norms' outputs
/// and the product of gate and up, unless those are made again.
double layer_values(const model::LlamaConfig& text, bool weights_learn, bool keeps_all) {
  const auto D = static_cast<double>(text.hidden_size);
  const auto F = static_cast<double>(text.intermediate_size);
  const auto heads = static_cast<double>(text.num_attention_heads * text.head_dim);
  const auto kv = static_cast<double>(text.num_key_value_heads * text.head_dim);
  const double frozen = 2 * D + 2 * heads + 2 * kv + 2 * F;
  return weights_learn && keeps_all ? frozen + 2 * D + F : frozen;
}

/// Bytes that LoRA adds for a token in one layer: what dropout keeps of each input (itself and a
/// mask), and the narrow product.
double lora_bytes(const model::LlamaConfig& text, const StageConfig& stage, double width) {
  const auto D = static_cast<double>(text.hidden_size);
  const auto F = static_cast<double>(text.intermediate_size);
  const auto heads = static_cast<double>(text.num_attention_heads * text.head_dim);
  const double inputs = 5 * D + heads + F;  // of q k v gate up, o, down
  const double narrow = 7 * static_cast<double>(stage.lora_r) * width;
  return narrow + (stage.lora_dropout > 0 ? inputs * (width + 1) : 0);
}

/// Values of a token on their way back through a layer: the sum's and a norm's gradients, gate's
/// and up's; where down's weight does not learn also the product's, whose value was not kept.
double backward_values(const model::LlamaConfig& text, const Tune& tune) {
  return 2 * static_cast<double>(text.hidden_size) +
         (tune.llm == Tuning::full ? 2 : 3) * static_cast<double>(text.intermediate_size);
}

/// What forward leaves for backward: of one layer of the decoder (`layer` in each, and `again` in
/// the one whose forward runs again), and of all else.
struct Activations {
  double layer = 0, again = 0, rest = 0;
};

Activations activation_bytes(const PlanRequest& request, const Tune& tune, const Dealt& dealt) {
  const auto& text = request.model.text;
  const double width = width_of(request.train);
  const bool learns = tune.llm != Tuning::none;
  const auto policy = read_recompute(request.train.model.gradient_checkpointing);
  const double softmax = 4.0 * static_cast<double>(text.num_attention_heads);  // fp32 log-sums
  const double lora = tune.llm == Tuning::lora ? lora_bytes(text, request.train.stage, width) : 0;
  const bool keeps_all = policy != nn::Recompute::selective;
  const auto D = static_cast<double>(text.hidden_size);
  Activations kept;
  kept.layer = layer_values(text, learns, keeps_all) * width + softmax + lora;
  if (policy == nn::Recompute::full) kept.again = std::exchange(kept.layer, D * width);
  kept.rest = 2 * D * width;  // spliced embeddings, input of the last norm
  for (auto* bytes : {&kept.layer, &kept.again, &kept.rest}) *bytes *= dealt.micro_tokens;

  const auto& vision = request.model.vision;
  const auto side = static_cast<double>(vision.side());
  const auto C = static_cast<double>(vision.hidden_size);
  const auto depth = static_cast<double>(model::projector_depth(request.model.projector_type));
  const double tiles = request.samples.tiles * dealt.micro_tokens / dealt.tokens;
  double tile = 0;
  if (tune.projector == Tuning::full || tune.vision == Tuning::full)
    tile += side * side * (C + std::max(0.0, depth - 1) * 2 * D) * width;
  if (tune.vision == Tuning::full && policy != nn::Recompute::full)
    tile += (side * side + 1) * static_cast<double>(vision.num_hidden_layers) *
            (8 * C + 2 * static_cast<double>(vision.intermediate_size)) * width;
  kept.rest += tile * tiles;
  return kept;
}

/// nn/loss.cpp: one chunk in fp32 and in the weights' type; with gradients of the head's weight an
/// fp32 sum and its rounded copy.
double logits_bytes(const PlanRequest& request, const Tune& tune, const Dealt& dealt) {
  const double width = width_of(request.train);
  const auto V = static_cast<double>(request.model.text.vocab_size);
  const auto D = static_cast<double>(request.model.text.hidden_size);
  const double learned = request.samples.learned * dealt.micro_tokens / dealt.tokens;
  const double chunk = std::min(learned, kLogitsChunk / 4 / V) * V;
  double bytes = chunk * (width == 4 ? 8 : 4 + 2 * width);
  bytes += 3 * learned * D * width;  // selected rows, their gradients, those put back
  if (tune.llm == Tuning::full) bytes += V * D * (width == 4 ? 8 : 4 + 2 * width);
  return bytes;
}

/// Weights kept in fewer bits (and half a bit of scale). They are no parameters: every rank holds
/// all of them.
double packed_values(const PlanRequest& request, const Counts& counts) {
  return request.train.model.bits < 16 ? counts.products : 0;
}

/// Bytes of optimizer state of one learned parameter.
double state_bytes(const TrainConfig& train) {
  const double moments = train.optimizer.optim == "adamw_8bit" ? 2 + 8 / kBlock : 8;
  return moments + (width_of(train) == 4 ? 0 : 4);  // fp32 masters of narrower weights
}

void add_bytes(const PlanRequest& request, const Counts& counts, const Tune& tune,
               const Dealt& dealt, Plan& plan) {
  const double width = width_of(request.train);
  const auto n = static_cast<double>(request.world());
  const auto zero = n > 1 ? request.train.sync.zero : 0;
  const double gradient_width = zero > 0 && request.train.sync.grad_dtype == "float32" ? 4 : width;
  const double of_layers = counts.layers + counts.lora;
  const double learned_rest = counts.learned - counts.learned_in_layers;
  const double owned = counts.learned / (zero > 0 ? n : 1);

  plan.vision = counts.vision * width;
  const double packed = packed_values(request, counts);
  plan.weights =
      (counts.projector + counts.rest + (of_layers - packed) / (zero == 3 ? n : 1)) * width;
  plan.weights += packed * (static_cast<double>(request.train.model.bits) + 0.5) / 8;
  const double state = owned * state_bytes(request.train);
  const bool offloads = zero > 0 && request.train.sync.zero_offload_optimizer;
  plan.optimizer = offloads ? 0 : state;
  plan.host_bytes = offloads ? state + owned * (width + gradient_width) : 0;

  // What else there is changes as a step goes on; the fullest of its moments counts.
  const auto& text = request.model.text;
  const auto L = static_cast<double>(text.num_hidden_layers);
  const auto kept = activation_bytes(request, tune, dealt);
  const double layer_weights = (of_layers - packed) / L * width;
  const double layer_gradients = counts.learned_in_layers / L * gradient_width;
  const double head_gradients = learned_rest * gradient_width / 2;  // the other half: embeddings
  const auto cap = static_cast<double>(request.train.sync.ddp_bucket_cap_mb > 0
                                           ? request.train.sync.ddp_bucket_cap_mb
                                           : std::max<std::int64_t>(25, request.world()));
  double bucket = std::min(counts.learned * gradient_width,
                           std::max(cap * (1 << 20), counts.largest_learned * gradient_width));
  if (zero == 3) bucket = std::max(layer_gradients, learned_rest > 0 ? bucket : 0);
  const double unpacked =  // a weight of few bits: its bytes, two steps in fp32, the result
      packed > 0 ? counts.largest_product * (9 + width) : 0;
  const double all_gradients = counts.learned * gradient_width / (zero >= 2 ? n : 1);
  const bool gradients_stay = dealt.micro_steps > 1;  // from one micro-step to the next

  struct Moment {
    double gradients = 0, activations = 0, logits = 0, buffers = 0;
    double total() const { return gradients + activations + logits + buffers; }
  };
  Moment loss{gradients_stay ? all_gradients : 0, L * kept.layer + kept.rest,
              logits_bytes(request, tune, dealt), unpacked + (zero == 3 ? layer_weights : 0)};
  Moment update{all_gradients, 0, 0, 0};
  if (width < 4 && !offloads)  // gradients are widened, a slot at a time
    update.buffers = 4 * std::min(owned, std::max(kSlotValues, counts.largest_learned));
  std::vector<Moment> moments{loss, update};
  for (double done = 0; done < L; ++done) {  // layers that backward has left behind
    Moment moment;
    const double arrived = head_gradients + done * layer_gradients;
    const double in_flight = zero >= 2 ? std::min(arrived, kBucketsInFlight * bucket) : 0;
    moment.gradients = gradients_stay ? all_gradients : (arrived - in_flight) / (zero >= 2 ? n : 1);
    moment.activations = (L - done) * kept.layer + kept.again + kept.rest;
    moment.buffers = layer_gradients / gradient_width * width + unpacked +
                     backward_values(request.model.text, tune) * width * dealt.micro_tokens;
    // A reduction makes a copy of what it sends.
    moment.buffers += std::min(arrived, in_flight + (zero >= 2 ? bucket : 0));
    if (zero == 3) moment.buffers += 2 * layer_weights;  // of the layer in use and the next
    moments.push_back(moment);
  }
  const auto fullest =
      *std::max_element(moments.begin(), moments.end(),
                        [](const Moment& a, const Moment& b) { return a.total() < b.total(); });
  plan.gradients = fullest.gradients;
  plan.most_gradients = all_gradients;
  plan.activations = fullest.activations;
  plan.logits = fullest.logits;
  plan.buffers = fullest.buffers;
  if (request.plan.gpu != "cpu") plan.buffers += kContextBytes;
}

// ── Time ────────────────────────────────────────────────────────────────────────────────────────

/// Bytes one device sends in a step.  Formulas: dist/zero.cpp, and see GradientSync's tests.
double sent_bytes(const PlanRequest& request, const Counts& counts, const Dealt& dealt) {
  const auto n = static_cast<double>(request.world());
  if (n <= 1) return 0;
  const double width = width_of(request.train);
  const double gradient_width =
      request.train.sync.grad_compression                                         ? 2
      : request.train.sync.zero > 0 && request.train.sync.grad_dtype == "float32" ? 4
                                                                                  : width;
  const double a = dealt.micro_steps, L = static_cast<double>(layers_of(request));
  const double learned = counts.learned, rest = learned - counts.learned_in_layers;
  double bytes = 0;
  switch (request.train.sync.zero) {
    case 0: bytes = 2 * learned * gradient_width; break;
    case 1: bytes = learned * (gradient_width + width); break;
    case 2: bytes = learned * (a * gradient_width + width); break;
    default:
      bytes = a * (2 * L - 1) / L * (counts.layers + counts.lora - packed_values(request, counts)) *
                  width +
              a * learned * gradient_width + rest * width;
  }
  return bytes * share(n);
}

void add_time(const PlanRequest& request, const Counts& counts, const Tune& tune,
              const Dealt& dealt, Plan& plan) {
  const auto& train = request.train;
  const double batch = static_cast<double>(train.data.per_device_train_batch_size *
                                           train.data.gradient_accumulation_steps) *
                       static_cast<double>(request.world());
  const auto per_epoch = static_cast<std::int64_t>(std::ceil(request.samples.samples / batch));
  plan.steps = total_steps(train.schedule, per_epoch);
  const double run_samples = train.schedule.max_steps > 0
                                 ? static_cast<double>(plan.steps) * batch
                                 : request.samples.samples * train.schedule.num_train_epochs;

  const Work sample{dealt.tokens, dealt.pairs, request.samples.learned, request.samples.tiles};
  const double useful = useful_flops(request.model, learning_of(tune, counts), sample);
  double executed = useful;
  if (read_recompute(train.model.gradient_checkpointing) == nn::Recompute::full)
    executed += layer_flops(request.model.text, sample);
  plan.tokens = run_samples * dealt.tokens;
  plan.flops = run_samples * useful;

  const auto n = static_cast<double>(request.world());
  const auto type = train.model.bf16 ? torch::kBFloat16 : torch::kFloat32;
  const auto peak = request.plan.gpu == "cpu" ? peak_flops(torch::Device(torch::kCPU), type)
                                              : peak_flops(request.plan.gpu, type);
  expect(peak.has_value(), Fault::usage, "--gpu: the speed of \"", request.plan.gpu,
         "\" is not known", suggestion(request.plan.gpu, known_gpus()), "; take A100, H100 ...");
  const double compute = batch * executed / (n * *peak * request.plan.efficiency);
  plan.step_bytes = sent_bytes(request, counts, dealt);
  double link = plan.step_bytes / (request.plan.link_speed * 1e9);
  if (request.plan.num_nodes > 1)  // in the machine first, then each GPU's part to its like
    link += plan.step_bytes / share(n) / static_cast<double>(request.processes) *
            share(static_cast<double>(request.plan.num_nodes)) /
            (request.plan.network_speed * 1e9 * kNetworkShare);
  plan.exposed_seconds = std::max(0.0, link - compute * 2 / 3);  // behind backward
  plan.step_seconds = compute * dealt.imbalance * (1 + kStragglers) +
                      kContention * std::min(link, compute) + plan.exposed_seconds;
  if (request.train.sync.zero_offload_optimizer && request.train.sync.zero > 0)
    plan.step_seconds += counts.learned / n * (state_bytes(train) + 8) / kHostLink;
  plan.hours = plan.step_seconds * run_samples / batch / 3600;
}

void add_disk(const PlanRequest& request, const Counts& counts, Plan& plan) {
  const auto& saving = request.train.checkpoint;
  const double moments = request.train.optimizer.optim == "adamw_8bit" ? 2 + 8 / kBlock : 8;
  plan.checkpoint_bytes = counts.learned * (4 + moments);
  double kept = 0;
  if (saving.save_strategy == "steps")
    kept = std::ceil(static_cast<double>(plan.steps) /
                     static_cast<double>(std::max<std::int64_t>(1, saving.save_steps)));
  if (saving.save_strategy == "epoch") kept = std::ceil(request.train.schedule.num_train_epochs);
  if (saving.save_total_limit > 0)  // one more while it is written
    kept = std::min(kept, static_cast<double>(saving.save_total_limit) + 1);
  const bool adds_only = counts.learned < 0.5 * counts.total() && counts.lora == 0 &&
                         counts.learned == counts.projector;
  const double model = adds_only ? counts.total() + counts.projector : counts.total();
  plan.disk_bytes = kept * plan.checkpoint_bytes + model * width_of(request.train);
}

}  // namespace

double parse_bytes(const std::string& text, const std::string& option) {
  std::size_t used = 0;
  double number = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::map<std::string, double> units{
      {"", 1},    {"B", 1},     {"MB", 1e6},        {"GB", 1e9},
      {"G", 1e9}, {"TB", 1e12}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}};
  auto unit = text.substr(std::min(used, text.size()));
  unit.erase(0, unit.find_first_not_of(' '));
  const auto found = units.find(unit);
  expect(used > 0 && found != units.end() && number > 0 && std::isfinite(number), Fault::usage,
         option, ": cannot read \"", text, "\" as a size; give one such as 80GB");
  return number * found->second;
}

Counts count_parameters(const model::LlavaConfig& config, const StageConfig& stage) {
  Tune tune = read_tune(stage);
  StageConfig without_lora = stage;
  const bool has_lora = tune.llm == Tuning::lora;
  if (has_lora) {  // its pairs are counted, not made
    without_lora.lora_enable = false;
    without_lora.tune = "llm=none";
    without_lora.tune += tune.projector == Tuning::full ? ",projector=full" : ",projector=none";
    without_lora.tune += tune.vision == Tuning::full ? ",vision=full" : ",vision=none";
  }
  model::Llava model(config, torch::TensorOptions(torch::kMeta));
  for (auto& parameter : model->parameters()) parameter.set_requires_grad(false);
  if (!has_lora || tune.projector == Tuning::full || tune.vision == Tuning::full)
    choose_stage(model, without_lora, 0, 0, 0);

  Counts counts;
  for (const auto& item : model->named_parameters()) {
    const auto values = static_cast<double>(item.value().numel());
    const bool in_layer = item.key().starts_with("llama.layers.");
    (item.key().starts_with("vision.")      ? counts.vision
     : item.key().starts_with("projector.") ? counts.projector
     : in_layer                             ? counts.layers
                                            : counts.rest) += values;
    const bool learns = item.value().requires_grad() || (has_lora && item.key() == "image_newline");
    if (!learns) continue;
    counts.learned += values;
    if (in_layer) counts.learned_in_layers += values;
    counts.largest_learned = std::max(counts.largest_learned, values);
  }
  for (const auto& [name, linear] : nn::named_linears(*model)) {
    if (!name.starts_with("llama.layers.")) continue;
    const auto values = static_cast<double>(linear->in() * linear->out());
    counts.products += values;
    counts.largest_product = std::max(counts.largest_product, values);
  }
  if (!has_lora) return counts;
  for (const auto& [name, linear] : nn::named_linears(*model)) {
    if (!model::is_lora_target(name)) continue;
    const auto r = static_cast<double>(stage.lora_r);
    const double a = r * static_cast<double>(linear->in()),
                 b = r * static_cast<double>(linear->out());
    counts.lora += a + b;
    counts.largest_learned = std::max({counts.largest_learned, a, b});
  }
  counts.learned += counts.lora;
  counts.learned_in_layers += counts.lora;
  return counts;
}

SampleSizes measure_samples(const data::Records& records, const input::Encoder* encoder,
                            const model::LlavaConfig& config, const data::MediaConfig& media,
                            std::int64_t threads) {
  SampleSizes sizes;
  sizes.samples = static_cast<double>(records.size());
  if (!encoder) {
    const media::TileShape square{config.tiling.tile, config.tiling.tile};
    const auto rows = media::image_rows(square, config.merge);
    const auto lengths = data::estimate_lengths(records, rows, threads);
    sizes.tokens = lengths.tokens;
    double tokens = 0;
    for (std::size_t i = 0; i < lengths.tokens.size(); ++i) {
      const bool pictured = lengths.words[i] > 0;
      sizes.tiles += pictured ? 1 : 0;
      tokens += lengths.tokens[i] - (pictured ? static_cast<double>(rows) : 0);
    }
    sizes.tiles /= sizes.samples;
    sizes.learned = 0.6 * tokens / sizes.samples;  // answers are the longer part
    return sizes;
  }
  const auto stride = std::max<std::int64_t>(1, records.size() / kMeasured);
  for (std::int64_t i = 0; i < records.size(); i += stride) {
    const auto example = data::measure_example(records.at(i), *encoder, media);
    sizes.tokens.push_back(static_cast<std::int32_t>(example.num_tokens()));
    for (const auto& picture : example.pictures)
      sizes.tiles += static_cast<double>(picture.tiles());
    sizes.learned += static_cast<double>(input::num_learned(example));
  }
  sizes.tiles /= static_cast<double>(sizes.tokens.size());
  sizes.learned /= static_cast<double>(sizes.tokens.size());
  return sizes;
}

SampleSizes assumed_samples(const PlanConfig& plan, const model::LlavaConfig& config) {
  expect(plan.num_samples > 0 && plan.tokens_per_sample > 0, Fault::usage,
         "llava plan: the training set is missing; give --data_path FILE, or --num_samples N and "
         "--tokens_per_sample M");
  expect(plan.images_per_sample >= 0, Fault::usage, "--images_per_sample: ", plan.images_per_sample,
         " is negative");
  SampleSizes sizes;
  sizes.samples = static_cast<double>(plan.num_samples);
  sizes.tokens = {
      static_cast<std::int32_t>(std::min<std::int64_t>(plan.tokens_per_sample, 1 << 30))};
  const media::TileShape square{config.tiling.tile, config.tiling.tile};
  const auto rows = static_cast<double>(media::image_rows(square, config.merge));
  const double tokens = sizes.tokens[0];
  sizes.tiles = std::min(plan.images_per_sample, tokens / rows);
  sizes.learned = 0.6 * (tokens - sizes.tiles * rows);
  return sizes;
}

Plan make_plan(const PlanRequest& request) {
  const Tune tune = read_tune(request.train.stage);
  const Counts counts = count_parameters(request.model, request.train.stage);
  const Dealt dealt = deal_some(request);
  Plan plan;
  plan.micro_tokens = dealt.micro_tokens;
  plan.imbalance = dealt.imbalance;
  plan.padded = dealt.padded;
  add_bytes(request, counts, tune, dealt, plan);
  add_time(request, counts, tune, dealt, plan);
  add_disk(request, counts, plan);
  plan.fits = plan.total() <= parse_bytes(request.plan.gpu_memory, "--gpu_memory");
  return plan;
}

}  // namespace llava::train
