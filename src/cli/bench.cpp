// llava bench: how fast the vision tower, prefill, decode and a training step run, and what share
// that is of what this machine copies, reads and multiplies in the same minutes.
#include "llava/cli/args.h"
#include "llava/generate/assistant.h"
#include "llava/nn/device.h"
#include "llava/train/flops.h"
#include "llava/train/stage.h"

#include "logit_error.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace llava::cli {
namespace {

using torch::Tensor;

struct BenchConfig {
  std::string model, model_base, vision_tower, shape = "tiny";
  std::string what = "vision,prefill,decode,train";
  std::vector<std::int64_t> batch{1};
  std::int64_t prompt_tokens = 0, text_tokens = 64, repetitions = 5, bits = 16;
  std::string compare;
  train::StageConfig stage;

  template <class Field>
  void fields(Field& field) {
    field("model", model, "model folder to measure");
    field("model_base", model_base,
          "folder of the base model, for LoRA and projector-only folders");
    field("vision_tower", vision_tower, "folder of the vision tower, where the config names none");
    field("shape", shape,
          "without a folder: random weights of this shape (tiny, llava-1.5-7b ...)");
    field("what", what, "some of vision, prefill, decode, train; the machine's limits always");
    field("batch", batch, "images, prompts or rows at once; several: 1,4,8");
    field("prompt_tokens", prompt_tokens, "tokens of a prompt; 0: one image and text_tokens");
    field("text_tokens", text_tokens, "text tokens of a prompt beside its image");
    field("bits", bits, "bits of the decoder's weights: 16 (as dtype says), 8 or 4");
    field("repetitions", repetitions, "times that everything is measured, in turn");
    field("compare", compare, "output of an earlier `bench --json` to compare with");
    stage.fields(field);
  }
};

/// One thing to measure.
struct Task {
  std::string what;
  std::int64_t batch = 1, tokens = 0;
  double flops = 0, bytes = 0;       // of one run
  std::string limit = {};            // the task whose rate bounds this one
  std::function<Tensor()> run = {};  // returns something to wait for
  std::vector<double> milliseconds = {};

  double median() const {
    auto sorted = milliseconds;
    std::sort(sorted.begin(), sorted.end());
    const auto n = sorted.size();
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
  }
  double tflops() const { return flops / median() / 1e9; }
  double gb_per_s() const { return bytes / median() / 1e6; }
};

/// Random weights in seconds rather than minutes: one block of them, again and again.
void fill_quickly(model::Llava& model, std::uint64_t seed) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(seed);
  constexpr std::int64_t kBlock = 1'000'003;  // prime: rows of a matrix do not repeat
  const auto& like = model->llama->embed_tokens->weight;
  const auto block = (torch::randn({kBlock}) * 0.02).to(like.device(), like.scalar_type());
  for (auto& item : model->named_parameters()) {
    auto flat = item.value().view({-1});
    if (item.key().find("norm") != std::string::npos) {
      flat.fill_(item.key().ends_with("bias") ? 0 : 1);
      continue;
    }
    for (std::int64_t begin = 0; begin < flat.size(0); begin += kBlock) {
      const auto count = std::min(kBlock, flat.size(0) - begin);
      flat.narrow(0, begin, count).copy_(block.narrow(0, 0, count));
    }
  }
}

model::Llava make_model(const BenchConfig& config, const CommonConfig& common) {
  const auto device = nn::choose_device(common.device);
  auto dtype = nn::choose_dtype(common.dtype);
  if (!config.model.empty()) {
    if (!dtype)
      dtype = generate::auto_dtype(model::read_llava_config(config.model).torch_dtype, device);
    return model::load_pretrained(config.model, {.device = device,
                                                 .dtype = dtype,
                                                 .model_base = config.model_base,
                                                 .vision_tower = config.vision_tower})
        .model;
  }
  if (!dtype) dtype = generate::auto_dtype("bfloat16", device).value_or(torch::kBFloat16);
  model::Llava model(model::named_shape(config.shape), torch::TensorOptions(*dtype).device(device));
  fill_quickly(model, static_cast<std::uint64_t>(common.seed));
  return model;
}

double bytes_of(const torch::nn::Module& module) {
  double bytes = 0;
  for (const auto& parameter : module.parameters())
    bytes += static_cast<double>(parameter.nbytes());
  for (const auto& part : module.modules())
    if (const auto* linear = part->as<nn::LinearImpl>(); linear && linear->packed)
      bytes += static_cast<double>(linear->packed->bytes());
  return bytes;
}

/// What bounds all the rest: reading, copying and multiplying.
void add_limits(std::vector<Task>& tasks, const model::Llava& model) {
  constexpr std::int64_t kFloats = 1 << 26;  // 256 MiB, beyond any cache
  const auto& like = model->llama->embed_tokens->weight;
  const auto options = torch::TensorOptions(torch::kFloat32).device(like.device());
  const auto from = torch::ones({kFloats}, options), to = torch::empty({kFloats}, options);
  const auto bytes = static_cast<double>(from.nbytes());
  tasks.push_back({.what = "read", .bytes = bytes, .run = [from] { return from.sum(); }});
  tasks.push_back(
      {.what = "copy", .bytes = 2 * bytes, .run = [from, to] { return Tensor(to).copy_(from); }});
  const std::int64_t n = like.is_cuda() ? 8192 : 2048;
  const auto a = torch::ones({n, n}, options).to(like.scalar_type());
  tasks.push_back(
      {.what = "matmul",
       .flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n),
       .run = [a] { return torch::linear(a, a); }});
}

/// Rows of `tokens` tokens each, with one picture in each where the prompt has one.
input::Batch make_batch(const model::Llava& model, const BenchConfig& config, std::int64_t rows) {
  input::Picture picture;
  picture.side = model->config.tiling.tile;
  picture.shape.image_width = picture.shape.image_height = picture.side;
  if (model->config.tiling.aspect == media::Aspect::anyres)
    picture.shape = media::tile_shape(picture.side, picture.side, model->config.tiling);
  picture.rows = media::image_rows(picture.shape, model->config.merge);
  picture.pixels.assign(
      static_cast<std::size_t>(picture.shape.tiles() * 3 * picture.side * picture.side), 128);
  input::Example example;
  const bool has_picture = config.prompt_tokens == 0;
  example.ids.assign(
      static_cast<std::size_t>(has_picture ? config.text_tokens : config.prompt_tokens), 1);
  example.labels = example.ids;
  if (has_picture) {
    example.ids.insert(example.ids.begin(), input::kImageToken);
    example.labels.insert(example.labels.begin(), input::kIgnore);
    example.pictures.push_back(picture);
  }
  return input::collate(std::vector<input::Example>(static_cast<std::size_t>(rows), example))
      .to(model->llama->embed_tokens->weight.device());
}

/// Operations of a forward pass.
double forward_flops(const model::Llava& model, const train::Work& work) {
  return train::useful_flops(model->config, {}, work);
}

void add_vision(std::vector<Task>& tasks, model::Llava model, const input::Batch& batch) {
  if (!batch.tiles.defined()) return;
  const auto tiles = static_cast<double>(batch.tiles.size(0));
  std::int64_t tokens = 0;
  for (const auto& picture : batch.pictures) tokens += picture.rows;
  tasks.push_back(
      {.what = "vision",
       .batch = batch.rows(),
       .tokens = tokens,
       .flops = forward_flops(model, {.tiles = tiles}),
       .bytes = bytes_of(*model->vision) + bytes_of(*model->projector),
       .limit = "matmul",
       .run = [model, batch]() mutable {
         torch::NoGradGuard no_grad;
         const auto pixels = model->pixel_values(batch.tiles);
         return model->image_features(model->vision_features(pixels), batch.pictures).back();
       }});
}

/// What a step of decode reads: the decoder's weights but for the embedding's other rows.
double decode_bytes(model::Llava& model, std::int64_t rows, std::int64_t tokens) {
  const auto& text = model->config.text;
  const double cache = 2.0 * static_cast<double>(rows * tokens * text.num_hidden_layers *
                                                 text.num_key_value_heads * text.head_dim);
  const auto size = static_cast<double>(model->llama->embed_tokens->weight.element_size());
  const double head = model->lm_head ? bytes_of(*model->lm_head)
                                     : static_cast<double>(model->head_weight().nbytes());
  return bytes_of(*model->llama->layers) + head + cache * size;
}

using Caches = std::shared_ptr<std::vector<nn::KvCache>>;

/// Logits [B, V] of each row's last token, behind the first `held` tokens that the caches hold.
Tensor forward(model::Llava model, const Caches& caches, const model::Spliced& rows,
               std::int64_t held) {
  torch::NoGradGuard no_grad;
  std::vector<nn::KvCache*> pointers;
  for (auto& cache : *caches) {
    cache.truncate(held);
    pointers.push_back(&cache);
  }
  const std::vector<std::int64_t> ends(rows.starts.begin() + 1, rows.starts.end());
  const auto last = torch::tensor(ends, torch::kInt64).sub_(1).to(rows.embeds.device());
  return model->logits(model->llama->forward(rows.embeds, rows.starts, pointers, last));
}

Caches make_caches(const model::Llava& model, std::int64_t rows, std::int64_t capacity) {
  const auto caches = std::make_shared<std::vector<nn::KvCache>>();
  for (std::int64_t row = 0; row < rows; ++row)
    caches->push_back(model::make_cache(model->llama, capacity));
  return caches;
}

void add_prefill(std::vector<Task>& tasks, model::Llava model, const input::Batch& batch) {
  torch::NoGradGuard no_grad;
  const auto prompts = model->embed(batch);
  const auto rows = batch.rows(), length = prompts.starts[1];
  auto work = train::work_of(batch);
  work.tiles = 0;
  work.learned = static_cast<double>(rows);  // logits of the last positions alone
  const auto caches = make_caches(model, rows, length);
  tasks.push_back({.what = "prefill",
                   .batch = rows,
                   .tokens = rows * length,
                   .flops = forward_flops(model, work),
                   .bytes = decode_bytes(model, rows, length),
                   .limit = "matmul",
                   .run = [=] { return forward(model, caches, prompts, 0); }});
}

/// One token more for each row behind the `held` tokens that its cache holds: logits [B, V].
template <class Step>
Tensor step(Step& step, const Caches& caches, std::int64_t held, const Tensor& logits) {
  std::vector<nn::NextToken> tokens;
  for (std::size_t row = 0; row < caches->size(); ++row) {
    auto& cache = (*caches)[row];
    cache.truncate(held);
    tokens.push_back({.id = 1,
                      .cache = &cache,
                      .logits = logits[static_cast<std::int64_t>(row)].data_ptr<float>()});
  }
  step.forward(tokens);
  return logits;
}

void add_decode(std::vector<Task>& tasks, model::Llava model, const input::Batch& batch) {
  torch::NoGradGuard no_grad;
  const auto prompts = model->embed(batch);
  const auto rows = batch.rows(), length = prompts.starts[1];
  const auto caches = make_caches(model, rows, length + 1);
  forward(model, caches, prompts, 0);
  model::Spliced next;
  next.embeds = prompts.embeds.narrow(0, 0, rows).clone();
  for (std::int64_t row = 0; row <= rows; ++row) next.starts.push_back(row);
  std::function<Tensor()> run = [=] { return forward(model, caches, next, length); };
  const auto logits = torch::empty({rows, model->config.text.vocab_size});
  if (const auto token_step = model::make_token_step(model))
    run = [=] { return step(*token_step, caches, length, logits); };
  else if (const auto device_step = model::make_device_step(model))
    run = [=] { return step(*device_step, caches, length, logits); };
  tasks.push_back({.what = "decode",
                   .batch = rows,
                   .tokens = rows,
                   .flops = forward_flops(model, {.tokens = static_cast<double>(rows),
                                                  .pairs = static_cast<double>(rows * length),
                                                  .learned = static_cast<double>(rows)}),
                   .bytes = decode_bytes(model, rows, length),
                   .limit = "read",
                   .run = run});
}

void add_train(std::vector<Task>& tasks, model::Llava model, const input::Batch& batch,
               const std::vector<train::ParameterGroup>& groups) {
  const auto optimizer = std::make_shared<train::Optimizer>(groups, train::OptimizerConfig{});
  const auto work = train::work_of(batch);
  tasks.push_back({.what = "train",
                   .batch = batch.rows(),
                   .tokens = static_cast<std::int64_t>(work.tokens),
                   .flops = train::useful_flops(model->config, train::learning_of(model), work),
                   .limit = "matmul",
                   .run = [model, batch, optimizer]() mutable {
                     const auto loss = model->loss(batch);
                     loss.backward();
                     const auto norm = optimizer->gradient_norm();
                     optimizer->step(0, norm, torch::zeros_like(norm));
                     optimizer->zero_grad();
                     return norm;
                   }});
}

/// All tasks in turn, again and again, so that a slow minute of the machine is slow for all.
void measure(std::vector<Task>& tasks, std::int64_t repetitions) {
  for (std::int64_t repetition = -1; repetition < repetitions; ++repetition)
    for (auto& task : tasks) {
      const auto start = std::chrono::steady_clock::now();
      task.run().flatten().narrow(0, 0, 1).to(torch::kCPU);  // waits
      const std::chrono::duration<double, std::milli> time =
          std::chrono::steady_clock::now() - start;
      if (repetition >= 0) task.milliseconds.push_back(time.count());  // the first warms up
    }
}

Json report(const std::vector<Task>& tasks, const BenchConfig& config, const model::Llava& model) {
  Json results = Json::array();
  for (const auto& task : tasks) {
    const auto [least, most] =
        std::minmax_element(task.milliseconds.begin(), task.milliseconds.end());
    Json row{{"what", task.what},
             {"batch", task.batch},
             {"tokens", task.tokens},
             {"ms_median", task.median()},
             {"ms_min", *least},
             {"ms_max", *most},
             {"tokens_per_s", 1000.0 * static_cast<double>(task.tokens) / task.median()},
             {"tflops", task.tflops()},
             {"gb_per_s", task.gb_per_s()}};
    for (const auto& limit : tasks)
      if (limit.what == task.limit)
        row["share_of_" + limit.what] = limit.what == "matmul" ? task.tflops() / limit.tflops()
                                                               : task.gb_per_s() / limit.gb_per_s();
    results.push_back(row);
  }
  const auto& weight = model->llama->embed_tokens->weight;
  return {{"device", weight.device().str()},
          {"dtype", model::dtype_name(weight.scalar_type())},
          {"shape", config.model.empty() ? config.shape : generate::model_name(config.model)},
          {"bits", config.bits},
          {"threads", at::get_num_threads()},
          {"results", results}};
}

/// Gives each row how many times as fast it is as the same row of an earlier report.
void compare(Json& report, const Json& earlier, const std::string& where) {
  expect(earlier.is_object() && earlier.contains("results") && earlier["results"].is_array(),
         Fault::data, where, ": is not the output of llava bench --json");
  for (auto& row : report["results"])
    for (const auto& other : earlier["results"]) {
      const auto is_equal = [&](const char* key) { return other.value(key, Json()) == row[key]; };
      if (is_equal("what") && is_equal("batch") && is_equal("tokens"))
        row["speedup"] = other.value("ms_median", 0.0) / row["ms_median"].get<double>();
    }
}

void print_table(const Json& report) {
  std::printf("%s, %s, %s\n", report["shape"].get<std::string>().c_str(),
              report["dtype"].get<std::string>().c_str(),
              report["device"].get<std::string>().c_str());
  std::printf("%-8s %5s %7s %10s %10s %10s %11s %8s %8s  %s\n", "what", "batch", "tokens",
              "ms median", "min", "max", "tokens/s", "TFLOP/s", "GB/s", "");
  for (const auto& row : report["results"]) {
    const auto number = [&](const char* key) { return row[key].get<double>(); };
    std::printf("%-8s %5.0f %7.0f %10.2f %10.2f %10.2f %11.1f %8.3f %8.1f ",
                row["what"].get<std::string>().c_str(), number("batch"), number("tokens"),
                number("ms_median"), number("ms_min"), number("ms_max"), number("tokens_per_s"),
                number("tflops"), number("gb_per_s"));
    for (const char* limit : {"matmul", "read"})
      if (row.contains(std::string("share_of_") + limit))
        std::printf(" %.0f%% of %s", 100 * row[std::string("share_of_") + limit].get<double>(),
                    limit);
    if (row.contains("speedup")) std::printf("  %.2fx as fast as before", number("speedup"));
    std::printf("\n");
  }
  if (report.contains("logit_error"))
    std::printf(
        "logits with %ld-bit weights against %s ones: off by %.2f%% of their norm in a prompt, "
        "whose "
        "products take 8-bit inputs, by %.2f%% in decode\n",
        report["bits"].get<long>(), report["dtype"].get<std::string>().c_str(),
        100 * report["logit_error"].get<double>(),
        100 * report["decode_logit_error"].get<double>());
}

}  // namespace

int bench(const std::vector<std::string>& words) {
  BenchConfig config;
  Args args("bench", "measure vision, prefill, decode and a train step", words);
  args.add(config);
  args.alias("model", "-m");
  args.alias("repetitions", "-r");
  if (!args.parse()) return 0;
  expect(config.repetitions >= 1, Fault::usage, "repetitions must be 1 or more");
  expect(config.text_tokens >= 1 && config.prompt_tokens >= 0, Fault::usage,
         "text_tokens must be positive, prompt_tokens 0 or positive");
  // Fewer bits are for answers: unless it is asked for, training is not measured with them.
  if (config.bits < 16 && !args.given("what")) config.what = "vision,prefill,decode";
  const auto parts = split_list(config.what);
  const std::vector<std::string> known{"vision", "prefill", "decode", "train"};
  for (const auto& part : parts)
    expect(std::find(known.begin(), known.end(), part) != known.end(), Fault::usage,
           "--what: there is nothing called \"", part, "\" to measure", suggestion(part, known));
  const Json earlier = config.compare.empty() ? Json() : read_json(config.compare);
  nn::set_threads(args.common().threads);
  auto model = make_model(config, args.common());
  const bool trains = std::find(parts.begin(), parts.end(), "train") != parts.end();
  expect(!trains || config.bits == 16, Fault::usage, "--bits ", config.bits,
         " is for answers: leave train out of --what");
  std::optional<LogitError> error;
  if (config.bits < 16 && !trains) error.emplace(model, make_batch(model, config, 1));
  if (!trains) generate::pack_for_answers(model, config.bits);

  std::vector<Task> tasks;
  add_limits(tasks, model);
  for (const auto rows : config.batch) {
    expect(rows >= 1, Fault::usage, "batch must be 1 or more, got ", rows);
    const auto batch = make_batch(model, config, rows);
    for (const auto& part : parts) {
      if (part == "vision") add_vision(tasks, model, batch);
      if (part == "prefill") add_prefill(tasks, model, batch);
      if (part == "decode") add_decode(tasks, model, batch);
      if (part == "train")
        add_train(tasks, model, batch,
                  train::choose_stage(model, config.stage, 1e-5, 0,
                                      static_cast<std::uint64_t>(args.common().seed)));
    }
  }
  measure(tasks, config.repetitions);
  Json result = report(tasks, config, model);
  if (error) {
    result["logit_error"] = error->of_prompt();
    result["decode_logit_error"] = error->of_decode();
  }
  if (!config.compare.empty()) compare(result, earlier, config.compare);
  if (args.common().json) {
    std::fputs(json_text(result).c_str(), stdout);
  } else {
    print_table(result);
  }
  return 0;
}

}  // namespace llava::cli
