// llava train as people meet it: killed, stopped, misused, and on several processes.
#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <sstream>

namespace llava {
namespace {

using support::llava;
using support::Outcome;
using testing::AllOf;
using testing::HasSubstr;

class Training : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<support::TemporaryFolder>();
    const auto made = llava({"init", "--shape", "tiny", "--output_dir", path("model")});
    ASSERT_EQ(made.exit, 0) << made.err;
    Json samples = Json::array();
    for (int i = 0; i < 12; ++i) {
      std::string picture = "P6 40 30 255\n";
      for (int j = 0; j < 40 * 30 * 3; ++j) picture += static_cast<char>(i * 20 + j % 50);
      const std::string name = std::to_string(i) + ".ppm";
      folder_->write("images/" + name, picture);
      Json sample{{"id", "s" + std::to_string(i)}};
      if (i % 3 != 2) sample["image"] = name;
      sample["conversations"] = {
          {{"from", "human"}, {"value", i % 3 != 2 ? "<image>\nwhat?" : "say it"}},
          {{"from", "gpt"}, {"value", "it is " + std::to_string(i)}}};
      samples.push_back(sample);
    }
    folder_->write("set.json", samples.dump());
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string path(const std::string& name) { return *folder_ / name; }

  /// The words of a run of six steps with LoRA and dropout into `output`.
  static std::vector<std::string> words(const std::string& output,
                                        const std::vector<std::string>& more = {}) {
    std::vector<std::string> all{"train",
                                 "--model_name_or_path",
                                 path("model"),
                                 "--data_path",
                                 path("set.json"),
                                 "--image_folder",
                                 path("images"),
                                 "--output_dir",
                                 path(output),
                                 "--version",
                                 "v1",
                                 "--per_device_train_batch_size",
                                 "2",
                                 "--max_steps",
                                 "6",
                                 "--lora_enable",
                                 "True",
                                 "--lora_r",
                                 "4",
                                 "--save_steps",
                                 "1",
                                 "--device",
                                 "cpu",
                                 "--threads",
                                 "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  static std::string weights_of(const std::string& output) {
    return read_file(path(output) + "/model/adapter_model.safetensors") +
           read_file(path(output) + "/model/non_lora_trainables.bin");
  }

  static std::vector<double> losses_of(const std::string& output) {
    std::vector<double> losses;
    std::istringstream lines(read_file(path(output) + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = parse_json(line, output);
      if (json["kind"] == "train") losses.push_back(json["loss"].get<double>());
    }
    return losses;
  }

  static std::unique_ptr<support::TemporaryFolder> folder_;
};
std::unique_ptr<support::TemporaryFolder> Training::folder_;

/// Starts the program and sends it a signal once its metrics tell of `lines` lines.
Outcome interrupted(std::vector<std::string> words, const std::string& metrics, int lines,
                    int signal) {
  words.insert(words.begin(), LLAVA_PROGRAM);
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::freopen("/dev/null", "w", stderr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  const auto count = [&] {
    std::error_code missing;
    if (!std::filesystem::exists(metrics, missing)) return 0;
    const auto text = read_file(metrics);
    return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  };
  int status = 0;
  while (count() < lines && ::waitpid(child, &status, WNOHANG) == 0) ::usleep(200);
  ::kill(child, signal);
  ::waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), "", ""};
}

/// The one command line of a job that is queued again whenever it is killed.
TEST_F(Training, KilledAnywhereEndsWithTheSameWeights) {
  const std::vector<std::string> again{"--resume_from_checkpoint", "last"};
  const auto whole = llava(words("whole", again));
  ASSERT_EQ(whole.exit, 0) << whole.err;
  for (int lines = 1; lines <= 11; lines += 2) {  // a line a step and one a checkpoint
    const std::string output = "killed" + std::to_string(lines);
    interrupted(words(output, again), path(output) + "/metrics.jsonl", lines, SIGKILL);
    const auto resumed = llava(words(output, again));
    ASSERT_EQ(resumed.exit, 0) << resumed.err;
    EXPECT_EQ(weights_of(output), weights_of("whole")) << "killed after line " << lines;
    EXPECT_EQ(losses_of(output), losses_of("whole"));
  }
}

/// QLoRA: the frozen decoder in four bits, and the model read back gives the same logits.
TEST_F(Training, LearnsOnFourBits) {
  const auto four = llava(words("four", {"--bits", "4", "--lora_dropout", "0"}));
  ASSERT_EQ(four.exit, 0) << four.err;
  const auto whole = llava(words("sixteen", {"--lora_dropout", "0"}));
  ASSERT_EQ(whole.exit, 0) << whole.err;
  const auto losses = losses_of("four"), others = losses_of("sixteen");
  ASSERT_EQ(losses.size(), others.size());
  EXPECT_NE(losses.front(), others.front());
  for (std::size_t i = 0; i < losses.size(); ++i)
    EXPECT_NEAR(losses[i], others[i], 0.1 * others[i]);
  const auto refused = llava(words("refused", {"--bits", "4", "--lora_enable", "False"}));
  EXPECT_EQ(refused.exit, 2) << refused.err;
  EXPECT_THAT(refused.err, testing::HasSubstr("--lora_enable"));
}

/// All that was trained is in the folder, and stays in what is made of it.
TEST_F(Training, AdaptersFolderConvertsWithItsProjectorAndBase) {
  ASSERT_EQ(llava(words("adapter", {"--learning_rate", "0.1", "--max_steps", "1"})).exit, 0);
  const auto folder = path("adapter") + "/model";
  const auto converted =
      llava({"convert", "-m", folder, "--to", "peft", "--output_dir", path("peft"), "--quiet"});
  ASSERT_EQ(converted.exit, 0) << converted.err;
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "llava/config.json",
                           "llava/preprocessor_config.json", "non_lora_trainables.bin"})
    EXPECT_EQ(read_file(path("peft") + "/" + name), read_file(folder + "/" + name)) << name;
  EXPECT_EQ(read_json(folder + "/adapter_config.json")["modules_to_save"],
            Json({"multi_modal_projector"}));

  const auto report = parse_json(llava({"inspect", folder, "--json"}).out, "inspect");
  EXPECT_EQ(report["dtype"], "float32");
  EXPECT_GT(report["parts"]["text"]["num_parameters"], 0);
  EXPECT_GT(report["parts"]["projector"]["num_parameters"], 0);
  EXPECT_EQ(report["parts"]["vision"]["num_parameters"], 0);
  EXPECT_EQ(report["unexpected"], Json::array());
}

TEST_F(Training, PlanMakesRealStepsAndKnowsBits) {
  auto all = words("planned", {"--json", "--gpu", "cpu", "--gpu_memory", "8GB", "--bf16", "False"});
  all[0] = "plan";
  const auto plain = llava(all);
  ASSERT_EQ(plain.exit, 0) << plain.err;
  EXPECT_FALSE(parse_json(plain.out, "plan").contains("measured"));
  all.insert(all.end(), {"--measure", "2", "--bits", "4"});
  const auto measured = llava(all);
  ASSERT_EQ(measured.exit, 0) << measured.err;
  const auto json = parse_json(measured.out, "plan");
  EXPECT_EQ(json["measured"]["steps"], 2);
  EXPECT_GT(json["measured"]["tokens_per_second"].get<double>(), 0);
  EXPECT_NE(measured.out.substr(0, 400), plain.out.substr(0, 400));
  EXPECT_FALSE(std::filesystem::exists(path("planned")));  // writes nothing
  all.back() = "5";
  EXPECT_EQ(llava(all).exit, 2);
}

TEST_F(Training, SigtermSavesAndExits75) {
  const auto stopped =
      interrupted(words("stopped", {"--save_strategy", "no", "--max_steps", "400"}),
                  path("stopped") + "/metrics.jsonl", 3, SIGTERM);
  EXPECT_EQ(stopped.exit, 75);
  int checkpoints = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path("stopped")))
    checkpoints += entry.path().filename().string().starts_with("checkpoint-");
  EXPECT_EQ(checkpoints, 1);
  EXPECT_FALSE(std::filesystem::exists(path("stopped") + "/model"));
}

/// Two processes with half the samples each are one process with all of them.
TEST_F(Training, TwoProcessesAreOne) {
  const std::vector<std::string> one{"--lora_dropout", "0", "--per_device_train_batch_size", "4"};
  ASSERT_EQ(llava(words("one", one)).exit, 0);
  for (const char* zero : {"0", "3"}) {
    const std::string output = std::string("two") + zero;
    const auto two = llava(words(output, {"--lora_dropout", "0", "--nproc_per_node", "2", "--zero",
                                          zero, "--dist_timeout", "60"}));
    ASSERT_EQ(two.exit, 0) << two.err;
    const auto want = losses_of("one"), got = losses_of(output);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 2e-4) << zero;
  }
}

TEST_F(Training, TableComesBeforeTheFirstStep) {
  const auto run = llava(words("table", {"--max_steps", "1"}));
  ASSERT_EQ(run.exit, 0) << run.err;
  const auto table = run.err.find("what learns"), step = run.err.find("step 1/1");
  ASSERT_NE(table, std::string::npos);
  ASSERT_NE(step, std::string::npos);
  EXPECT_LT(table, step);
  EXPECT_EQ(run.out, "");
}

TEST_F(Training, MisuseIsNamedWithItsExitCode) {
  const auto no_data = llava(words("wrong", {"--data_path", path("none.json")}));
  EXPECT_EQ(no_data.exit, 3);
  EXPECT_THAT(no_data.err, HasSubstr("none.json"));
  const auto no_place = llava(words("set.json"));
  EXPECT_EQ(no_place.exit, 2);
  EXPECT_THAT(no_place.err, HasSubstr("set.json"));
  const auto nothing = llava({"train"});
  EXPECT_EQ(nothing.exit, 2);
  EXPECT_THAT(nothing.err, HasSubstr("--model_name_or_path is missing"));
  const auto half = llava(words("wrong", {"--dtype", "float16"}));
  EXPECT_EQ(half.exit, 2);
  EXPECT_THAT(half.err, HasSubstr("--bf16"));
  ASSERT_EQ(llava(words("changed", {"--max_steps", "2"})).exit, 0);
  const auto changed = llava(words(
      "changed", {"--max_steps", "2", "--learning_rate", "1", "--resume_from_checkpoint", "last"}));
  EXPECT_EQ(changed.exit, 2);
  EXPECT_THAT(changed.err, AllOf(HasSubstr("learning_rate was"), HasSubstr("checkpoint-2")));
}

TEST_F(Training, ReferencesFlagsAreTakenAsItsScriptsSpellThem) {
  const auto shown = llava({"train", "--bf16", "True", "--gradient_checkpointing", "True",
                            "--evaluation_strategy", "no", "--mm_use_im_start_end", "False",
                            "--group_by_modality_length", "True", "--print_config"});
  ASSERT_EQ(shown.exit, 0) << shown.err;
  const auto json = parse_json(shown.out, "--print_config");
  EXPECT_EQ(json["gradient_checkpointing"], "True");
  EXPECT_EQ(json["group_by_modality_length"], true);
  EXPECT_EQ(json["eval_strategy"], "no");
  EXPECT_EQ(json["mm_use_im_start_end"], false);
}

/// finetune.sh of the reference as it stands, but for the paths and the number of steps.
TEST_F(Training, LineOfTheReferencesScriptsRuns) {
  folder_->write("zero2.json", R"({"zero_optimization": {"stage": 2}})");
  const auto trained = llava({"train",
                              "--deepspeed",
                              path("zero2.json"),
                              "--model_name_or_path",
                              path("model"),
                              "--version",
                              "v1",
                              "--data_path",
                              path("set.json"),
                              "--image_folder",
                              path("images"),
                              "--mm_projector_type",
                              "mlp2x_gelu",
                              "--mm_vision_select_layer",
                              "-2",
                              "--mm_use_im_start_end",
                              "False",
                              "--mm_use_im_patch_token",
                              "False",
                              "--image_aspect_ratio",
                              "pad",
                              "--group_by_modality_length",
                              "True",
                              "--bf16",
                              "True",
                              "--output_dir",
                              path("script"),
                              "--num_train_epochs",
                              "1",
                              "--per_device_train_batch_size",
                              "16",
                              "--per_device_eval_batch_size",
                              "4",
                              "--gradient_accumulation_steps",
                              "1",
                              "--evaluation_strategy",
                              "no",
                              "--save_strategy",
                              "steps",
                              "--save_steps",
                              "50000",
                              "--save_total_limit",
                              "1",
                              "--learning_rate",
                              "2e-5",
                              "--weight_decay",
                              "0.",
                              "--warmup_ratio",
                              "0.03",
                              "--lr_scheduler_type",
                              "cosine",
                              "--logging_steps",
                              "1",
                              "--tf32",
                              "True",
                              "--model_max_length",
                              "2048",
                              "--gradient_checkpointing",
                              "True",
                              "--dataloader_num_workers",
                              "4",
                              "--lazy_preprocess",
                              "True",
                              "--report_to",
                              "wandb",
                              "--device",
                              "cpu",
                              "--threads",
                              "1"});
  EXPECT_EQ(trained.exit, 0) << trained.err;
  for (const char* line : {"--zero 2", "--tf32: ", "--report_to wandb: tensorboard"})
    EXPECT_THAT(trained.err, HasSubstr(line));
  EXPECT_EQ(read_json(path("script") + "/config.json")["zero"], 2);
}

}  // namespace
}  // namespace llava
