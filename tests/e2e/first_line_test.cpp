// The thin true line through the house, by the program alone: make a world, make a model, train
// both stages, ask.
#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace llava {
namespace {

using support::llava;
using testing::HasSubstr;

std::vector<Json> lines_of_kind(const std::string& path, const std::string& kind) {
  std::vector<Json> found;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) {
    const auto json = parse_json(line, path);
    if (json["kind"] == kind) found.push_back(json);
  }
  return found;
}

/// A world of 48 pictures and a model folder that knows nothing, made once for all tests here.
class FirstLine : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new support::TemporaryFolder;
    const auto world = llava({"data", "make-scenes", "--output_dir", path("world"), "--num_single",
                              "8", "--num_train", "48", "--num_captions_test", "8",
                              "--num_questions", "14", "--num_texts", "8", "--image_size", "56"});
    ASSERT_EQ(world.exit, 0) << world.err;
    const auto model =
        llava({"init", "--shape", "tiny", "--output_dir", path("model"), "--tokenizer_text",
               path("world/corpus.txt"), "--tokenizer_size", "340", "--image_size", "56"});
    ASSERT_EQ(model.exit, 0) << model.err;
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string path(const std::string& name) { return *folder_ / name; }

  /// Trains and returns the losses of all steps.
  static std::vector<double> train(std::vector<std::string> words, const std::string& output) {
    words.insert(words.begin(), "train");
    for (const char* word : {"--image_folder", "IMAGES", "--logging_steps", "1", "--seed", "1"})
      words.emplace_back(word == std::string("IMAGES") ? path("world/images") : word);
    words.insert(words.end(), {"--output_dir", path(output)});
    const auto outcome = llava(words);
    EXPECT_EQ(outcome.exit, 0) << outcome.err;
    std::vector<double> losses;
    for (const auto& line : lines_of_kind(path(output) + "/metrics.jsonl", "train"))
      losses.push_back(line["loss"].get<double>());
    return losses;
  }

  static support::TemporaryFolder* folder_;
};
support::TemporaryFolder* FirstLine::folder_ = nullptr;

TEST_F(FirstLine, BothStagesLearnAndTheModelRepeatsWhatItMemorised) {
  const auto stage1 =
      train({"--model_name_or_path", path("model"), "--tune_mm_mlp_adapter", "true", "--version",
             "plain", "--data_path", path("world/captions.json"), "--max_steps", "50",
             "--per_device_train_batch_size", "8", "--learning_rate", "1e-2"},
            "stage1");
  ASSERT_EQ(stage1.size(), 50u);
  EXPECT_LT(stage1.back(), stage1.front() * 0.95);
  EXPECT_TRUE(std::filesystem::exists(path("stage1/mm_projector.bin")));

  // Six samples, seen over and over, are learned by heart.
  auto samples = read_json(path("world/talk.json"));
  samples.erase(samples.begin() + 6, samples.end());
  write_file(path("six.json"), json_text(samples));
  const auto stage2 =
      train({"--model_name_or_path", path("model"), "--pretrain_mm_mlp_adapter", path("stage1"),
             "--version", "v1", "--data_path", path("six.json"), "--max_steps", "150",
             "--per_device_train_batch_size", "6", "--learning_rate", "5e-3"},
            "stage2");
  ASSERT_EQ(stage2.size(), 150u);
  EXPECT_LT(stage2.back(), 0.1);

  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto& turns = samples[i]["conversations"];
    auto question = turns[0]["value"].get<std::string>();
    question = question.substr(question.find('\n') + 1);
    const auto answer = llava({"run", "-m", path("stage2/model"), "--conv_mode", "vicuna_v1",
                               "--temp", "0", "-n", "16", "--json", "-p", question, "--image",
                               path("world/images/" + samples[i]["image"].get<std::string>())});
    ASSERT_EQ(answer.exit, 0) << answer.err;
    const auto json = parse_json(answer.out, "run --json");
    EXPECT_EQ(json["text"], turns[1]["value"]) << question;
    EXPECT_EQ(json["finish_reason"], "stop");
  }
}

TEST_F(FirstLine, InspectTellsWhatInitMade) {
  const auto outcome = llava({"inspect", path("model"), "--json"});
  ASSERT_EQ(outcome.exit, 0) << outcome.err;
  const auto json = parse_json(outcome.out, "inspect --json");
  EXPECT_EQ(json["missing"].size(), 0u);
  EXPECT_EQ(json["unexpected"].size(), 0u);
  EXPECT_GT(json["parts"]["vision"]["num_parameters"].get<int>(), 0);
  EXPECT_EQ(json["num_parameters"].get<int>(),
            json["parts"]["vision"]["num_parameters"].get<int>() +
                json["parts"]["projector"]["num_parameters"].get<int>() +
                json["parts"]["text"]["num_parameters"].get<int>());
}

TEST_F(FirstLine, BadInputIsNamedWithItsExitCode) {
  const auto run = [](std::vector<std::string> more) {
    std::vector<std::string> words{"run", "-m", path("model"), "-p", "Hi", "-n", "2"};
    words.insert(words.end(), more.begin(), more.end());
    return llava(words);
  };
  const auto missing = run({"--image", path("none.jpg")});
  EXPECT_EQ(missing.exit, 3);
  EXPECT_THAT(missing.err, HasSubstr("none.jpg"));

  const auto whole = read_json(path("world/talk.json"))[0]["image"].get<std::string>();
  write_file(path("broken.jpg"), read_file(path("world/images/" + whole)).substr(0, 300));
  const auto broken = run({"--image", path("broken.jpg")});
  EXPECT_EQ(broken.exit, 3);
  EXPECT_THAT(broken.err, HasSubstr("broken.jpg"));

  const auto option = run({"--max_new_token", "3"});
  EXPECT_EQ(option.exit, 2);
  EXPECT_THAT(option.err, HasSubstr("max_new_tokens"));

  std::filesystem::copy(path("model"), path("cut"));
  const auto weights = read_file(path("model/model.safetensors"));
  write_file(path("cut/model.safetensors"), weights.substr(0, weights.size() / 2));
  const auto cut = llava({"run", "-m", path("cut"), "-p", "Hi"});
  EXPECT_EQ(cut.exit, 3);
  EXPECT_THAT(cut.err, HasSubstr("model.safetensors"));

  write_file(path("bad.json"), "[\n{\"id\": \"a\", \"conversations\": []},\n{\"id\": }\n]\n");
  const auto json =
      llava({"train", "--model_name_or_path", path("model"), "--data_path", path("bad.json"),
             "--output_dir", path("never"), "--max_steps", "1", "--quiet"});
  EXPECT_EQ(json.exit, 3);
  EXPECT_THAT(json.err, HasSubstr("bad.json"));
  for (const auto* outcome : {&missing, &broken, &option, &cut, &json})
    EXPECT_EQ(std::count(outcome->err.begin(), outcome->err.end(), '\n'), 1) << outcome->err;
}

}  // namespace
}  // namespace llava
