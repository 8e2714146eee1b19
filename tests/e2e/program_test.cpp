// What every verb shares: help, versions, misspellings, layers of settings, the doctor, and the
// installed library.
#include "support/program.h"
#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using support::llava;
using testing::HasSubstr;

TEST(Program, HelpAndVersionGoToStdout) {
  const auto help = llava({"--help"});
  EXPECT_EQ(help.exit, 0);
  for (const char* verb :
       {"train", "run", "chat", "data", "convert", "init", "inspect", "doctor"}) {
    EXPECT_THAT(help.out, HasSubstr(verb));
    const auto of_verb = llava({verb, "--help"});
    EXPECT_EQ(of_verb.exit, 0) << verb << of_verb.err;
    EXPECT_THAT(of_verb.out, HasSubstr("--config"));
    EXPECT_EQ(of_verb.err, "");
  }
  const auto version = llava({"--version"});
  EXPECT_EQ(version.exit, 0);
  EXPECT_THAT(version.out, HasSubstr("llava 0."));
}

TEST(Program, NewVocabularyHoldsEveryCharacterOfItsText) {
  const support::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 300; ++i)  // from U+4E00 on, each twice
    for (int twice = 0; twice < 2; ++twice)
      text += std::string{char(0xe4), char(0xb8 + i / 64), char(0x80 + i % 64), '\n'};
  folder.write("text.txt", text);
  const std::vector<std::string> words{"init",
                                       "--shape",
                                       "tiny",
                                       "--output_dir",
                                       folder / "model",
                                       "--tokenizer_text",
                                       folder / "text.txt"};
  const auto fits = llava(words);
  EXPECT_EQ(fits.exit, 0) << fits.err;
  auto small = words;
  small.insert(small.end(), {"--tokenizer_size", "400"});
  const auto refused = llava(small);
  EXPECT_EQ(refused.exit, 2);
  EXPECT_THAT(refused.err, HasSubstr("400 pieces"));
}

TEST(Program, ResultsThatCannotBeWrittenAreAFailure) {
  const support::TemporaryFolder folder;
  ASSERT_EQ(llava({"init", "--shape", "tiny", "--output_dir", folder / "model"}).exit, 0);
  const std::vector<std::string> verbs{"inspect " + folder / "model" + " --json", "doctor",
                                       "run --help", "--version"};
  for (const auto& verb : verbs) {
    const auto full =
        support::run_command({"sh", "-c", std::string(LLAVA_PROGRAM) + " " + verb + " >/dev/full"});
    EXPECT_EQ(full.exit, 1) << verb;
    EXPECT_THAT(full.err, HasSubstr("stdout cannot be written")) << verb;
  }
}

TEST(Program, VerbsThatWriteFilesPrintOneObjectToo) {
  const support::TemporaryFolder folder;
  ASSERT_EQ(llava({"init", "--shape", "tiny", "--output_dir", folder / "model"}).exit, 0);
  const auto input = folder.write("q.jsonl",
                                  "{\"question_id\": 1, \"text\": \"Hi\"}\n"
                                  "{\"question_id\": 2, \"text\": \"Hi\", "
                                  "\"image\": \"none.png\"}\n");
  const auto ran = llava({"run", "-m", folder / "model", "--input", input, "--output",
                          folder / "a.jsonl", "-n", "2", "--json", "--quiet"});
  EXPECT_EQ(ran.exit, 3);
  EXPECT_EQ(parse_json(ran.out, "stdout"),
            Json({{"questions", 2}, {"answered_before", 0}, {"failed", 1}}));
  const auto made = llava({"data", "make-scenes", "--num_single", "2", "--num_train", "2",
                           "--num_captions_test", "1", "--num_questions", "4", "--num_texts", "1",
                           "--output_dir", folder / "world", "--json", "--quiet"});
  EXPECT_EQ(made.exit, 0) << made.err;
  EXPECT_EQ(parse_json(made.out, "stdout")["output_dir"], folder / "world");
}

TEST(Program, MisspellingsAreUsageErrorsThatNameTheNearest) {
  const auto verb = llava({"trian"});
  EXPECT_EQ(verb.exit, 2);
  EXPECT_THAT(verb.err, HasSubstr("did you mean \"train\""));
  const auto option = llava({"train", "--learning-rat", "1"});
  EXPECT_EQ(option.exit, 2);
  EXPECT_THAT(option.err, HasSubstr("--learning_rate"));
  EXPECT_EQ(llava({}).exit, 2);
  EXPECT_EQ(llava({"inspect", "a", "b"}).exit, 2);
  const auto value = llava({"run", "-n"});
  EXPECT_EQ(value.exit, 2);
  EXPECT_THAT(value.err, HasSubstr("needs a value"));
}

TEST(Program, CommandLineOverridesFileOverridesDefault) {
  const support::TemporaryFolder folder;
  const auto file = folder.write("c.json", R"({"learning_rate": 0.25, "seed": 5})");
  const auto outcome = llava({"train", "--config", file, "--learning-rate=0.5", "--print_config"});
  ASSERT_EQ(outcome.exit, 0) << outcome.err;
  const auto settings = parse_json(outcome.out, "--print_config");
  EXPECT_EQ(settings["learning_rate"], 0.5);  // command line
  EXPECT_EQ(settings["seed"], 5);             // file
  EXPECT_EQ(settings["adam_beta1"], 0.9);     // default
  const auto wrong = folder.write("w.json", R"({"learning_rte": 1})");
  const auto refused = llava({"train", "--config", wrong, "--print_config"});
  EXPECT_EQ(refused.exit, 2);
  EXPECT_THAT(refused.err, HasSubstr("did you mean \"learning_rate\""));
}

TEST(Program, FilesOfSettingsKnowTheNamesOfTheCommandLine) {
  const support::TemporaryFolder folder;
  const auto file =
      folder.write("c.json", R"({"n-predict": 7, "model_path": "m", "temp": 0.5, "top-p": 0.25})");
  const auto shown = llava({"run", "--config", file, "--print_config"});
  ASSERT_EQ(shown.exit, 0) << shown.err;
  const auto settings = parse_json(shown.out, "--print_config");
  EXPECT_EQ(settings["max_new_tokens"], 7);
  EXPECT_EQ(settings["model"], "m");
  EXPECT_EQ(settings["temperature"], 0.5);
  EXPECT_EQ(settings["top_p"], 0.25);
  const auto wrong = folder.write("w.json", R"({"tmp": 1})");
  EXPECT_THAT(llava({"run", "--config", wrong}).err, HasSubstr("did you mean \"temp\""));
}

TEST(Program, ValuesMayBeginWithADash) {
  const auto outcome =
      llava({"train", "--mm_vision_select_layer", "-2", "--bf16", "--print_config"});
  ASSERT_EQ(outcome.exit, 0) << outcome.err;
  const auto settings = parse_json(outcome.out, "--print_config");
  EXPECT_EQ(settings["mm_vision_select_layer"], -2);
  EXPECT_EQ(settings["bf16"], true);
}

TEST(Program, DoctorTrustsThisBuild) {
  const auto outcome = llava({"doctor", "--json"});
  EXPECT_EQ(outcome.exit, 0) << outcome.out << outcome.err;
  const auto report = parse_json(outcome.out, "doctor --json");
  EXPECT_EQ(report["ok"], true);
  std::vector<std::string> names;
  for (const auto& check : report["checks"]) {
    names.push_back(check["name"]);
    EXPECT_NE(check["status"], "FAIL") << check.dump();
  }
  EXPECT_THAT(
      names, testing::IsSupersetOf({"LibTorch", "CUDA", "NCCL", "CPU", "threads", "memory",
                                    "codecs", "open files", "shared memory", "disk", "self-test"}));
}

}  // namespace
}  // namespace llava
