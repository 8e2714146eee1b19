#include "llava/train/final_model.h"

#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/model/adapter.h"
#include "llava/train/identity.h"

namespace llava::train {
namespace {

/// A sample with a picture if there is one among the first, so that all parts are compared.
input::Batch probe_batch(const TrainingData& data, std::int64_t max_tokens) {
  constexpr std::int64_t kLooked = 32;
  std::optional<input::Example> probe;
  for (std::int64_t i = 0; i < std::min(kLooked, data.records->size()); ++i) {
    try {
      auto example = data::load_example(data.records->at(i), *data.encoder, data.media);
      const bool has_picture = !example.pictures.empty();
      if (example.num_tokens() > max_tokens) continue;
      if (!probe || has_picture) probe = std::move(example);
      if (has_picture) break;
    } catch (const Error&) {
      continue;  // whether broken samples matter was --on_bad_image's to say
    }
  }
  if (!probe) {
    probe.emplace();
    probe->ids = {0, 1, 2, 3};
    probe->labels.assign(4, input::kIgnore);
  }
  return input::collate({*probe});
}

/// Logits of the last tokens, [up to 16, V] float32 on the CPU.
torch::Tensor probe_logits(model::Llava& model, const input::Batch& batch) {
  const torch::NoGradGuard no_grad;
  model->eval();
  const auto device = model->llama->norm->weight.device();
  const auto spliced = model->embed(batch.to(device));
  const auto hidden = model->llama(spliced.embeds, spliced.starts);
  constexpr std::int64_t kTokens = 16;
  return model->logits(hidden.slice(0, -std::min(kTokens, hidden.size(0)))).cpu();
}

/// Largest over the vocabulary that both have: a saved one may have grown rows for <image>.
double logit_difference(const torch::Tensor& a, const torch::Tensor& b) {
  const auto rows = std::min(a.size(1), b.size(1));
  return (a.narrow(1, 0, rows) - b.narrow(1, 0, rows)).abs().max().item<double>();
}

/// output_dir/config.json serves two readers: it holds all settings of the run, and the keys by
/// which the reference loads a projector. The model's win where both have one.
void add_model_keys(const std::string& path, const Json& settings) {
  Json both = settings;
  both.update(read_json(path));
  write_file(path, json_text(both));
}

void write_and_compare(const TrainConfig& config, const Compute& compute, model::Pretrained start,
                       const input::Batch& batch, const torch::Tensor& before) {
  const std::string& output = config.loop.output_dir;
  const std::string folder = output + "/model";
  const Tune tune = read_tune(config.stage);
  const auto layout = saved_layout(start);
  model::LoadOptions options;
  options.device = compute.device;
  options.dtype = compute.dtype;
  make_folder(folder);
  if (tune.llm == Tuning::lora) {
    model::save_adapter(folder, start.model, layout, start.base_folder);
  } else {
    model::save_pretrained(folder, start.model, layout, start.tokenizer_folder);
  }
  if (tune.is_projector_only()) {
    model::save_projector(output, start.model);
    add_model_keys(output + "/config.json", effective_settings(config, compute));
  }

  start.model = nullptr;  // two models need not fit
  auto again = model::load_pretrained(folder, options);
  pack_frozen(again.model, config.model.bits);
  const double difference = logit_difference(probe_logits(again.model, batch), before);
  expect(difference == 0, Fault::verification, folder,
         ": the model read back gives other logits than the one that was trained (by up to ",
         difference, "); the last checkpoint is good");
  log::info("saved ", folder, "; read back, it gives the same logits");
}

}  // namespace

void save_final_model(const TrainConfig& config, const Compute& compute, model::Pretrained start,
                      const TrainingData& data, dist::GradientSync& sync,
                      const dist::ProcessGroup& group) {
  const auto batch = probe_batch(data, config.model.model_max_length);
  auto& llama = *start.model->llama;  // its weights may have to be gathered, as in training
  llama.before_layer = [&](std::int64_t layer, const auto& x) { sync.before_layer(layer, x); };
  llama.after_layer = [&](std::int64_t layer, const auto& x) { sync.after_layer(layer, x); };
  const torch::Tensor before = probe_logits(start.model, batch);
  llama.before_layer = llama.after_layer = {};
  sync.gather_on_host();
  if (compute.rank == 0) write_and_compare(config, compute, std::move(start), batch, before);
  group.barrier("the final model");
}

}  // namespace llava::train
