// A run on a tiny model folder and a tiny world, in the test's own folder.
#pragma once

#include "llava/base/files.h"
#include "llava/media/encode.h"
#include "llava/text/vocabulary.h"
#include "llava/train/final_model.h"
#include "llava/train/output.h"
#include "llava/train/trainer.h"
#include "support/temporary_folder.h"
#include "tiny_training.h"

#include <functional>
#include <optional>

namespace llava::train::test {

/// A model folder with a tokenizer, pictures, and a set of 12 samples with pictures and 4 without.
class TinyWorld {
 public:
  TinyWorld() {
    make_folder(model());
    text::save_tokenizer(model(), text::character_vocabulary());
    auto config = llava::test::tiny_config();
    config.text.vocab_size = 384;
    const auto tokenizer = text::Tokenizer::load(model());
    config.image_token_id = *tokenizer.special("<image>");
    config.text.max_position_embeddings = 512;
    auto made = llava::test::tiny_model(config);
    model::save_pretrained(model(), made, model::Layout::hugging_face, model());
    for (std::int64_t i = 0; i < 12; ++i) {
      media::Image image{20 + 3 * i, 40 - i, {}};
      for (std::int64_t j = 0; j < image.width * image.height * 3; ++j)
        image.rgb.push_back(static_cast<std::uint8_t>(i * 19 + j * (j % 3 + 1)));
      folder_.write("images/" + std::to_string(i) + ".png", media::encode_png(image));
    }
    write_set("set.json", 16);
  }

  std::string model() const { return folder_ / "model"; }
  std::string images() const { return folder_ / "images"; }
  std::string operator/(const std::string& name) const { return folder_ / name; }
  const support::TemporaryFolder& folder() const { return folder_; }

  void write_set(const std::string& name, int count) const {
    Json samples = Json::array();
    for (int i = 0; i < count; ++i) {
      Json sample{{"id", "sample-" + std::to_string(i)}};
      const bool has_picture = i % 4 != 3;
      if (has_picture) sample["image"] = std::to_string(i % 12) + ".png";
      sample["conversations"] = {
          {{"from", "human"},
           {"value", has_picture ? "<image>\nwhat?" : "say " + std::string(i, 'x')}},
          {{"from", "gpt"}, {"value", "answer " + std::to_string(i * i)}}};
      samples.push_back(sample);
    }
    folder_.write(name, samples.dump());
  }

 private:
  support::TemporaryFolder folder_;
};

/// Settings of a small Stage 2: 4 steps an epoch, 8 in all.
inline TrainConfig settings(const TinyWorld& world, const std::string& output = "out") {
  TrainConfig config;
  config.model.model_name_or_path = world.model();
  config.model.version = "v1";
  config.data.data_path = world / "set.json";
  config.data.image_folder = world.images();
  config.data.per_device_train_batch_size = 2;
  config.data.gradient_accumulation_steps = 2;
  config.data.dataloader_num_workers = 1;
  config.schedule.learning_rate = 1e-2;
  config.schedule.num_train_epochs = 2;
  config.loop.output_dir = world / output;
  config.metrics.report_to = "none";
  return config;
}

/// A trainer with all that it works on, as cli/train puts it together for one process.
class TinyRun {
 public:
  explicit TinyRun(TrainConfig wanted, torch::ScalarType dtype = torch::kFloat32)
      : config(std::move(wanted)) {
    compute.dtype = dtype;
    check(config);
    torch::manual_seed(compute.seed);
    output.emplace(config, compute);
    start = load_model(config.model, compute);
    auto groups = choose_stage(start.model, config.stage, config.schedule.learning_rate,
                               config.optimizer.weight_decay, compute.seed);
    settle_layout(start);
    data = open_data(config.data, config.model, start, template_name(config), compute);
    optimizer.emplace(std::move(groups), config.optimizer);
    trainer.emplace(
        config, compute,
        TrainerParts{start.model, facts_of(start.model), *optimizer, data, *sync, group});
    trainer->resume();
  }

  /// Makes `count` steps, saves, and forgets the rest, as a kill would.
  void steps_and_save(int count) {
    for (int i = 0; i < count; ++i) trainer->step();
    write_checkpoint(config.loop.output_dir, trainer->checkpoint());
  }

  void finish() {
    trainer->run();
    trainer.reset();
    save_final_model(config, compute, start, data, *sync, group);
  }

  /// All that lives: weights that learn, moments, and the random generator.
  std::vector<std::pair<std::string, torch::Tensor>> everything() const {
    std::vector<std::pair<std::string, torch::Tensor>> all;
    for (const auto& [name, tensor] : trainer->checkpoint().tensors)
      all.emplace_back(name, tensor.clone());
    return all;
  }

  TrainConfig config;
  Compute compute;
  std::optional<OutputFolder> output;
  model::Pretrained start;
  TrainingData data;
  dist::ProcessGroup group;
  std::unique_ptr<dist::GradientSync> sync = dist::alone();
  std::optional<Optimizer> optimizer;
  std::optional<Trainer> trainer;
};

inline std::vector<Json> lines_of(const TinyRun& run, const std::string& kind) {
  std::vector<Json> found;
  for (const auto& line : read_metrics(run.config.loop.output_dir + "/metrics.jsonl"))
    if (line["kind"] == kind) found.push_back(line);
  return found;
}

}  // namespace llava::train::test
