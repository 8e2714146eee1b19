#include "llava/train/trainer.h"

#include "support/expect_error.h"
#include "tiny_run.h"

#include <gtest/gtest.h>
#include <torch/version.h>

#include <csignal>
#include <filesystem>

namespace llava::train {
namespace {

namespace fs = std::filesystem;
using support::error_of;
using test::lines_of;
using test::settings;
using test::TinyRun;
using test::TinyWorld;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// One world for all tests of this file; each test has its own output folder.
class TrainerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { world_ = std::make_unique<TinyWorld>(); }
  static void TearDownTestSuite() { world_.reset(); }
  void SetUp() override {
    output = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  TrainConfig config() const { return settings(*world_, output); }

  static std::unique_ptr<TinyWorld> world_;
  std::string output;
};
std::unique_ptr<TinyWorld> TrainerTest::world_;

void expect_same(const TinyRun& a, const TinyRun& b, const std::string& what) {
  const auto left = a.everything(), right = b.everything();
  ASSERT_EQ(left.size(), right.size());
  for (std::size_t i = 0; i < left.size(); ++i)
    EXPECT_TRUE(torch::equal(left[i].second, right[i].second)) << what << ": " << left[i].first;
}

/// Resumed from every step of a run, the end is the same to the last bit.
TEST_F(TrainerTest, ResumedEqualsNeverStopped) {
  struct Variant {
    const char* name;
    std::function<void(TrainConfig&)> change;
    torch::ScalarType dtype = torch::kFloat32;
  };
  const Variant variants[] = {
      {"stage2", [](TrainConfig&) {}},
      {"stage1", [](TrainConfig& c) { c.stage.tune_mm_mlp_adapter = true; }},
      {"lora with dropout",
       [](TrainConfig& c) {
         c.stage.lora_enable = true;
         c.stage.lora_r = 4;
         c.stage.lora_dropout = 0.5;
       }},
      {"bfloat16, eight bits", [](TrainConfig& c) { c.optimizer.optim = "adamw_8bit"; },
       torch::kBFloat16},
  };
  for (const auto& variant : variants) {
    auto whole_config = config();
    whole_config.loop.output_dir += std::string("/whole ") + variant.name;
    variant.change(whole_config);
    TinyRun whole(whole_config, variant.dtype);
    const auto total = static_cast<int>(whole.trainer->total_steps());
    ASSERT_EQ(total, 8);
    for (int i = 0; i < total; ++i) whole.trainer->step();
    for (int stop = 1; stop < total; stop += variant.name == std::string("stage2") ? 1 : 3) {
      auto part_config = whole_config;
      part_config.loop.output_dir = *world_ / output + "/" + variant.name + std::to_string(stop);
      TinyRun(part_config, variant.dtype).steps_and_save(stop);
      part_config.checkpoint.resume_from_checkpoint = "last";
      TinyRun resumed(part_config, variant.dtype);
      EXPECT_EQ(resumed.trainer->progress().step, stop);
      for (int i = stop; i < total; ++i) resumed.trainer->step();
      expect_same(whole, resumed, variant.name + std::string(" from ") + std::to_string(stop));
      EXPECT_EQ(resumed.trainer->progress().tokens, whole.trainer->progress().tokens);
    }
  }
}

/// Each kind of state matters: without it the end differs, so the test above would notice.
TEST_F(TrainerTest, EveryPartOfACheckpointMatters) {
  auto wanted = config();
  wanted.stage.lora_enable = true;
  wanted.stage.lora_r = 4;
  wanted.stage.lora_dropout = 0.5;
  TinyRun whole(wanted);
  for (int i = 0; i < 8; ++i) whole.trainer->step();
  const auto end = whole.everything();
  for (const std::string part : {"exp_avg.", "exp_avg_sq.", "random.", "step"}) {
    auto resumed_config = wanted;
    resumed_config.loop.output_dir += part;
    TinyRun stopped(resumed_config);
    for (int i = 0; i < 4; ++i) stopped.trainer->step();
    auto checkpoint = stopped.trainer->checkpoint();
    Checkpoint spoiled{checkpoint.step, checkpoint.state, {}};
    for (const auto& [name, tensor] : checkpoint.tensors) {
      const bool drops = name.starts_with(part);
      if (part == "random." && drops) continue;
      spoiled.tensors.add(name, drops ? torch::zeros_like(tensor) : tensor);
    }
    write_checkpoint(resumed_config.loop.output_dir, spoiled);
    resumed_config.checkpoint.resume_from_checkpoint = "last";
    stopped.trainer.reset();
    stopped.output.reset();
    TinyRun resumed(resumed_config);
    for (int i = 4; i < 8; ++i) resumed.trainer->step();
    bool is_same = true;
    const auto now = resumed.everything();
    for (std::size_t i = 0; i < end.size(); ++i)
      is_same = is_same && torch::equal(now[i].second, end[i].second);
    EXPECT_FALSE(is_same) << part;
  }
}

TEST_F(TrainerTest, AnEpochThatIsCutIsValidatedAtItsEnd) {
  auto wanted = config();
  wanted.data.val_size = 4;
  wanted.loop.eval_strategy = "epoch";
  wanted.schedule.max_steps = 2;  // of 3
  TinyRun run(wanted);
  run.finish();
  const auto evals = lines_of(run, "eval");
  ASSERT_EQ(evals.size(), 1u);
  EXPECT_EQ(evals[0]["step"], 2);
}

TEST_F(TrainerTest, RunWritesWhatTheContractNames) {
  auto wanted = config();
  wanted.checkpoint.save_steps = 3;
  wanted.checkpoint.save_total_limit = 2;
  wanted.data.val_size = 4;
  wanted.loop.eval_strategy = "epoch";
  wanted.metrics.report_to = "tensorboard";
  wanted.metrics.logging_steps = 2;
  TinyRun run(wanted);
  run.finish();
  EXPECT_EQ(run.data.records->size(), 12);  // 3 steps an epoch, 6 in all
  std::vector<std::int64_t> steps;
  for (const auto& line : lines_of(run, "train")) steps.push_back(line["step"]);
  EXPECT_THAT(steps, ElementsAre(2, 4, 6));
  const auto evals = lines_of(run, "eval");
  ASSERT_EQ(evals.size(), 2u);
  EXPECT_EQ(evals[1]["step"], 6);
  EXPECT_LT(evals[1]["loss"], evals[0]["loss"]);
  ASSERT_EQ(lines_of(run, "end").size(), 1u);
  const auto& folder = wanted.loop.output_dir;
  for (const char* name : {"config.json", "environment.json", "loss.svg", "tensorboard",
                           "checkpoint-3", "checkpoint-6", "model/config.json"})
    EXPECT_TRUE(fs::exists(folder + "/" + name)) << name;
  EXPECT_FALSE(fs::exists(folder + "/mm_projector.bin"));
  EXPECT_EQ(read_json(folder + "/config.json")["save_steps"], 3);
  EXPECT_EQ(read_json(folder + "/environment.json")["libtorch"], TORCH_VERSION);
}

TEST_F(TrainerTest, StageOneLeavesTheReferencesFiles) {
  auto wanted = config();
  wanted.stage.tune_mm_mlp_adapter = true;
  wanted.schedule.max_steps = 2;
  TinyRun(wanted).finish();
  const auto& folder = wanted.loop.output_dir;
  const auto projector = weights::load_file(folder + "/mm_projector.bin");
  EXPECT_EQ(projector.size(), 4u);
  EXPECT_TRUE(projector.contains("model.mm_projector.0.weight"));
  const auto json = read_json(folder + "/config.json");
  EXPECT_EQ(json["max_steps"], 2);                     // a setting of the run
  EXPECT_EQ(json["mm_projector_type"], "mlp2x_gelu");  // a key of the model
  EXPECT_TRUE(json.contains("architectures"));
  // Stage 2 begins with it.
  auto second = config();
  second.loop.output_dir += "2";
  second.model.pretrain_mm_mlp_adapter = folder;
  TinyRun next(second);
  EXPECT_TRUE(torch::equal(next.start.model->projector->layers[0]->weight,
                           projector.at("model.mm_projector.0.weight")));
}

TEST_F(TrainerTest, TrainedModelIsWhatTheFolderHolds) {
  auto wanted = config();
  wanted.schedule.max_steps = 2;
  TinyRun run(wanted);
  run.finish();
  auto again = model::load_pretrained(wanted.loop.output_dir + "/model");
  const auto trained = run.start.model->named_parameters();
  for (const auto& item : again.model->named_parameters())
    EXPECT_TRUE(torch::equal(item.value(), trained[item.key()])) << item.key();
}

TEST_F(TrainerTest, LoraLeavesAPeftFolderThatGoesOnLearning) {
  auto wanted = config();
  wanted.stage.lora_enable = true;
  wanted.stage.lora_r = 4;
  wanted.schedule.max_steps = 3;
  TinyRun run(wanted);
  run.finish();
  const std::string folder = wanted.loop.output_dir + "/model";
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors",
                           "non_lora_trainables.bin", "llava/config.json"})
    EXPECT_TRUE(fs::exists(folder + "/" + name)) << name;
  // With one transformers would look for a whole model here instead of going to the base.
  EXPECT_FALSE(fs::exists(folder + "/config.json"));
  EXPECT_EQ(model::read_llava_config(folder).tiling.aspect, media::Aspect::pad);
  auto further = wanted;
  further.loop.output_dir += "2";
  further.model.lora_weight_path = folder;
  TinyRun next(further);
  const auto before = run.start.model->named_parameters();
  for (const auto& item : next.start.model->named_parameters())
    EXPECT_TRUE(torch::equal(item.value(), before[item.key()])) << item.key();
}

/// Half as many samples a micro-batch, twice as many micro-batches: the same step.
TEST_F(TrainerTest, CutIntoMicroBatchesDoesNotMatter) {
  std::vector<std::vector<torch::Tensor>> ends;
  for (const auto& [rows, accumulation, budget] :
       {std::tuple{4, 1, 0}, std::tuple{1, 4, 0}, std::tuple{2, 2, 60}}) {
    auto wanted = config();
    wanted.loop.output_dir += std::to_string(rows) + "-" + std::to_string(budget);
    wanted.data.per_device_train_batch_size = rows;
    wanted.data.gradient_accumulation_steps = accumulation;
    wanted.data.tokens_per_micro_batch = budget;
    wanted.data.shuffle = false;
    wanted.schedule.learning_rate = 1e-3;  // small, or AdamW makes much of sums rounded otherwise
    TinyRun run(wanted);
    std::vector<torch::Tensor> figures;
    for (int i = 0; i < 3; ++i) figures.push_back(run.trainer->step().figures);
    ends.push_back(figures);
  }
  for (std::size_t other : {1u, 2u})
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_TRUE(torch::allclose(ends[0][i], ends[other][i], 1e-4, 1e-4))
          << ends[0][i] << ends[other][i];
}

TEST_F(TrainerTest, LossReductionOfTheReferenceIsTheMeanOfMeans) {
  for (const char* reduction : {"token", "micro_batch"}) {
    auto wanted = config();
    wanted.loop.output_dir += reduction;
    wanted.loop.loss_reduction = reduction;
    wanted.data.shuffle = false;
    wanted.data.sampler = "reference";
    TinyRun run(wanted);
    auto model = run.start.model;
    double sum = 0, means = 0, learned = 0;
    {
      torch::NoGradGuard no_grad;
      const auto work = run.data.train->next();
      for (const auto& batch : work.micro_batches) {
        sum += model->loss(batch, /*sum=*/true).item<float>();
        means += model->loss(batch).item<float>() / 2;
        learned += static_cast<double>(batch.num_learned());
      }
    }
    run.data.train->seek(0);
    const float loss = run.trainer->step().figures[0].item<float>();
    const double wanted_loss = reduction == std::string("token") ? sum / learned : means;
    EXPECT_NEAR(loss, wanted_loss, 2e-6 * wanted_loss);  // sums of 32 bits in another order
  }
}

TEST_F(TrainerTest, GoingOnNeedsTheSameSettingsDataAndModel) {
  TinyRun(config()).steps_and_save(2);
  const auto refusal = [&](const std::function<void(TrainConfig&)>& change) {
    auto other = config();
    other.checkpoint.resume_from_checkpoint = "last";
    change(other);
    return error_of(Fault::usage, [&] { TinyRun run(other); });
  };
  EXPECT_THAT(refusal([](TrainConfig& c) { c.schedule.learning_rate = 1e-3; }),
              AllOf(HasSubstr("checkpoint-2"), HasSubstr("learning_rate was 0.01 and is 0.001")));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.schedule.max_steps = 3; }), HasSubstr("max_steps"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.stage.tune = "llm=none"; }), HasSubstr("tune was"));
  EXPECT_THAT(refusal([](TrainConfig& c) { c.data.per_device_train_batch_size = 4; }),
              HasSubstr("global batch"));
  world_->write_set("other.json", 15);
  EXPECT_THAT(refusal([&](TrainConfig& c) { c.data.data_path = *world_ / "other.json"; }),
              HasSubstr("training set"));
  // What does not touch the weights may change.
  auto other = config();
  other.checkpoint.resume_from_checkpoint = "last";
  other.metrics.logging_steps = 7;
  other.checkpoint.save_steps = 3;
  other.model.gradient_checkpointing = "full";
  EXPECT_EQ(TinyRun(other).trainer->progress().step, 2);
}

TEST_F(TrainerTest, LastWithoutACheckpointBeginsAfreshAndAPathMustExist) {
  auto wanted = config();
  wanted.checkpoint.resume_from_checkpoint = "last";
  EXPECT_EQ(TinyRun(wanted).trainer->progress().step, 0);
  wanted.checkpoint.resume_from_checkpoint = wanted.loop.output_dir + "/checkpoint-9";
  EXPECT_THAT(error_of(Fault::data, [&] { TinyRun run(wanted); }), HasSubstr("checkpoint-9"));
}

TEST_F(TrainerTest, EarlierRunIsNotOverwrittenUnlessAsked) {
  TinyRun(config()).steps_and_save(2);
  EXPECT_THAT(
      error_of(Fault::usage, [&] { TinyRun run(config()); }),
      AllOf(HasSubstr("--resume_from_checkpoint last"), HasSubstr("--overwrite_output_dir")));
  auto again = config();
  again.checkpoint.overwrite_output_dir = true;
  TinyRun run(again);
  EXPECT_EQ(run.trainer->progress().step, 0);
  EXPECT_THAT(list_checkpoints(again.loop.output_dir), ElementsAre());
}

TEST_F(TrainerTest, FolderTakesOneRunAtATime) {
  const TinyRun first(config());
  EXPECT_THAT(error_of(Fault::usage, [&] { TinyRun run(config()); }),
              HasSubstr("another run is at work"));
}

TEST_F(TrainerTest, UnwritableOutputIsAUsageError) {
  auto wanted = config();
  wanted.loop.output_dir = world_->folder().write("in the way", "");
  EXPECT_THAT(error_of(Fault::usage, [&] { TinyRun run(wanted); }), HasSubstr("in the way"));
}

TEST_F(TrainerTest, SignalSavesAndEndsWithItsOwnFault) {
  auto wanted = config();
  wanted.checkpoint.save_strategy = "no";
  TinyRun run(wanted);
  int steps = 0;
  run.start.model->llama->before_layer = [&, old = run.start.model->llama->before_layer](
                                             std::int64_t layer, const torch::Tensor& hidden) {
    old(layer, hidden);
    if (layer == 0 && ++steps == 5) std::raise(SIGUSR1);  // in the third step: two passes each
  };
  EXPECT_THAT(error_of(Fault::stopped, [&] { run.trainer->run(); }),
              AllOf(HasSubstr("SIGUSR1"), HasSubstr("after step 3 of 8")));
  EXPECT_THAT(list_checkpoints(wanted.loop.output_dir),
              ElementsAre(wanted.loop.output_dir + "/checkpoint-3"));
  EXPECT_EQ(lines_of(run, "event").back()["signal"], "SIGUSR1");
}

/// Makes the loss of samples with this text infinite from step `from` on.
void poison(TinyRun& run, int from) {
  auto model = run.start.model;
  auto passes = std::make_shared<int>(0);
  model->llama->before_layer = [passes, from](std::int64_t layer, const torch::Tensor& hidden) {
    if (layer == 0 && ++*passes > 2 * (from - 1) && *passes <= 2 * from) {
      torch::NoGradGuard no_grad;
      const_cast<torch::Tensor&>(hidden).mul_(NAN);
    }
  };
}

TEST_F(TrainerTest, NonFiniteStepIsNeverApplied) {
  TinyRun run(config());
  for (int i = 0; i < 2; ++i) run.trainer->step();
  const auto before = run.everything();
  poison(run, 1);
  run.trainer->step();
  const auto after = run.everything();
  for (std::size_t i = 0; i < before.size(); ++i)
    EXPECT_TRUE(torch::equal(before[i].second, after[i].second)) << before[i].first;
}

TEST_F(TrainerTest, NonFiniteLossStopsNamingStepAndSamples) {
  TinyRun run(config());
  poison(run, 3);
  const auto text = error_of(Fault::non_finite, [&] { run.trainer->run(); });
  EXPECT_THAT(text, AllOf(HasSubstr("step 3: the loss is not finite"), HasSubstr("sample-"),
                          HasSubstr("--on_nan skip")));
  EXPECT_EQ(lines_of(run, "warn").back()["samples"].size(), 4u);
  EXPECT_THAT(list_checkpoints(run.config.loop.output_dir), ElementsAre());
}

TEST_F(TrainerTest, NonFiniteLossMayBeSkipped) {
  auto wanted = config();
  wanted.loop.on_nan = "skip";
  TinyRun run(wanted);
  poison(run, 3);
  run.trainer->run();
  EXPECT_EQ(run.trainer->progress().updates_skipped, 1);
  EXPECT_EQ(lines_of(run, "train").back()["skipped"], 1);
  EXPECT_EQ(run.trainer->progress().step, 8);
}

TEST_F(TrainerTest, RollbackReturnsToTheLastCheckpointsWeights) {
  auto wanted = config();
  wanted.loop.on_nan = "rollback";
  wanted.checkpoint.save_steps = 2;
  wanted.schedule.max_steps = 5;
  TinyRun run(wanted);
  poison(run, 4);
  run.trainer->run();
  EXPECT_EQ(run.trainer->progress().step, 5);

  // The same by hand: steps 1 and 2, then step 5 on the samples of step 5.
  auto by_hand = wanted;
  by_hand.loop.output_dir += " by hand";
  TinyRun other(by_hand);
  for (int i = 0; i < 2; ++i) other.trainer->step();
  const auto saved = other.trainer->checkpoint();
  weights::StateDict copies;
  for (const auto& [name, tensor] : saved.tensors) copies.add(name, tensor.clone());
  for (int i = 0; i < 2; ++i) other.trainer->step();
  other.trainer->restore({saved.step, saved.state, copies}, /*with_random=*/false);
  other.trainer->step();
  expect_same(run, other, "rollback");
}

TEST_F(TrainerTest, RollbackWithoutACheckpointStops) {
  auto wanted = config();
  wanted.loop.on_nan = "rollback";
  TinyRun run(wanted);
  poison(run, 1);
  EXPECT_THAT(error_of(Fault::non_finite, [&] { run.trainer->run(); }),
              HasSubstr("no checkpoint to go back to"));
}

TEST_F(TrainerTest, WeightsThatAreNotFiniteAreNeverSaved) {
  TinyRun run(config());
  run.trainer->step();
  {
    torch::NoGradGuard no_grad;
    run.start.model->lm_head->weight[0][0] = INFINITY;
  }
  // All later losses are finite no more; saving would be asked by the last step.
  auto wanted = config();
  EXPECT_THAT(error_of(Fault::non_finite, [&] { run.trainer->run(); }), HasSubstr("not finite"));
  EXPECT_THAT(list_checkpoints(run.config.loop.output_dir), ElementsAre());
}

TEST_F(TrainerTest, BadImageStopsOrIsCounted) {
  fs::copy(world_->images(), *world_ / output + " images");
  std::ofstream(*world_ / output + " images/5.png") << "not a picture";
  auto wanted = config();
  wanted.data.image_folder = *world_ / output + " images";
  EXPECT_THAT(error_of(Fault::data, [&] { TinyRun(wanted).trainer->run(); }),
              AllOf(HasSubstr("5.png"), HasSubstr("sample-5")));
  wanted.data.on_bad_image = "skip";
  wanted.checkpoint.overwrite_output_dir = true;
  TinyRun run(wanted);
  run.trainer->run();
  EXPECT_EQ(run.trainer->progress().samples_skipped, 2);  // once an epoch
  EXPECT_EQ(run.trainer->progress().samples, 2 * 16 - 2);
}

/// A step whose samples were all left out has no loss, and says why.
TEST_F(TrainerTest, SkippedSamplesAreTold) {
  fs::copy(world_->images(), *world_ / output + " images");
  std::ofstream(*world_ / output + " images/1.png") << "not a picture";
  auto wanted = config();
  wanted.data.image_folder = *world_ / output + " images";
  wanted.data.on_bad_image = "skip";
  wanted.data.shuffle = false;
  wanted.data.per_device_train_batch_size = wanted.data.gradient_accumulation_steps = 1;
  wanted.schedule.max_steps = 3;
  TinyRun run(wanted);
  run.trainer->run();
  std::vector<Json> losses, warnings;
  double sum = 0;
  for (const auto& line : read_metrics(wanted.loop.output_dir + "/metrics.jsonl")) {
    if (line["kind"] == "warn") warnings.push_back(line);
    if (line["kind"] == "train") losses.push_back(line["loss"]);
    if (line["kind"] == "end") sum = 2 * line["train_loss"].get<double>();
  }
  ASSERT_EQ(losses.size(), 3u);
  EXPECT_TRUE(losses[1].is_null());
  EXPECT_NEAR(losses[0].get<double>() + losses[2].get<double>(), sum, 1e-6);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0]["step"], 2);
  EXPECT_EQ(warnings[0]["what"], "skipped");
  EXPECT_THAT(warnings[0]["samples"].dump(), HasSubstr("1.png"));
}

TEST_F(TrainerTest, OverlongSampleIsCutDroppedOrRefused) {
  auto wanted = config();
  wanted.model.model_max_length = 185;  // v1's system prompt alone takes 154
  for (const char* policy : {"truncate", "drop", "error"}) {
    wanted.data.on_overlength = policy;
    wanted.loop.output_dir = *world_ / output + policy;
    TinyRun run(wanted);
    if (policy == std::string("error")) {
      EXPECT_THAT(error_of(Fault::data, [&] { run.trainer->run(); }), HasSubstr("sample-"));
    } else {
      for (int i = 0; i < 4; ++i) run.trainer->step();
      EXPECT_LE(run.trainer->progress().tokens, 16 * 185);
      EXPECT_EQ(run.trainer->progress().samples_skipped > 0, policy == std::string("drop"));
    }
  }
}

TEST_F(TrainerTest, ValidationLossIsThatOfTheHeldOutTokens) {
  auto wanted = config();
  wanted.data.val_size = 0.25;
  wanted.data.per_device_eval_batch_size = 3;
  TinyRun run(wanted);
  EXPECT_EQ(run.data.held_out->size(), 4);
  double sum = 0, learned = 0;
  double parts[2] = {}, counts[2] = {};  // with pictures, without
  torch::NoGradGuard no_grad;
  for (std::int64_t i = 0; i < 4; ++i) {
    const auto batch = input::collate(
        {data::load_example(run.data.held_out->at(i), *run.data.encoder, run.data.media)});
    const double loss = run.start.model->loss(batch, /*sum=*/true).item<float>();
    const auto count = static_cast<double>(batch.num_learned());
    sum += loss;
    learned += count;
    parts[batch.pictures.empty()] += loss;
    counts[batch.pictures.empty()] += count;
  }
  for (int again = 0; again < 2; ++again) {  // from the beginning each time
    const auto validation = run.trainer->evaluate();
    EXPECT_NEAR(validation.loss, sum / learned, 1e-4);
    ASSERT_TRUE(validation.loss_image);
    EXPECT_NEAR(*validation.loss_image, parts[0] / counts[0], 1e-4);
    EXPECT_EQ(validation.loss_text.has_value(), counts[1] > 0);
    if (validation.loss_text) {
      EXPECT_NEAR(*validation.loss_text, parts[1] / counts[1], 1e-4);
    }
  }
}

TEST_F(TrainerTest, LossIsToldByModality) {
  auto wanted = config();
  wanted.data.shuffle = false;  // three samples with pictures and one without in every step
  wanted.schedule.max_steps = 2;
  TinyRun run(wanted);
  const auto report = run.trainer->step();
  const double image = report.figures[3].item<float>(), text = report.figures[4].item<float>();
  EXPECT_GT(report.image_tokens, report.text_tokens);
  EXPECT_NEAR(report.figures[0].item<float>(),
              (image + text) / static_cast<double>(report.image_tokens + report.text_tokens), 1e-4);
  run.trainer->run();
  const auto line = lines_of(run, "train").back();
  EXPECT_GT(line["loss_image"], 0);
  EXPECT_GT(line["loss_text"], 0);
  EXPECT_NE(line["loss_image"], line["loss_text"]);
}

TEST_F(TrainerTest, CheckpointsComeAtEpochsWhenAsked) {
  auto wanted = config();
  wanted.checkpoint.save_strategy = "epoch";
  TinyRun(wanted).trainer->run();
  EXPECT_EQ(list_checkpoints(wanted.loop.output_dir).size(), 2u);
  auto never = config();
  never.loop.output_dir += "never";
  never.checkpoint.save_strategy = "no";
  TinyRun(never).trainer->run();
  EXPECT_THAT(list_checkpoints(never.loop.output_dir), ElementsAre());
}

}  // namespace
}  // namespace llava::train
