#include "llava/generate/questions.h"

#include "llava/base/files.h"
#include "scripted.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>

namespace llava::generate {
namespace {

using support::error_of;
using testing::HasSubstr;

const char* const kQuestions = R"({"question_id": 7, "image": "a.ppm", "text": "What is it?"}
{"question_id": "x", "image": "b.ppm", "text": "Caf\u00e9?\nAnswer briefly.", "category": "default"}

{"question_id": 7, "text": "No picture"}
{"question_id": 9, "image": ["a.ppm", "b.ppm"], "text": "Two?"}
{"question_id": 10, "image": "a.ppm", "text": "Last"}
)";

/// A folder with two pictures and five questions.
class Questions : public testing::Test {
 protected:
  Questions() : assistant_(make_assistant(test::tiny_model(wordy_config()))) {
    write_picture("a.ppm", 40, 30, 1);
    write_picture("b.ppm", 30, 50, 90);
    write_file(folder_ / "q.jsonl", kQuestions);
  }

  void write_picture(const std::string& name, int width, int height, int seed) {
    std::string bytes = "P6 " + std::to_string(width) + " " + std::to_string(height) + " 255\n";
    for (int i = 0; i < 3 * width * height; ++i) bytes += static_cast<char>(seed + 37 * i);
    folder_.write(name, bytes);
  }

  QuestionsReport run(const std::string& output, std::int64_t batch = 1) {
    return answer_questions(assistant_,
                            {.input = folder_ / "q.jsonl",
                             .output = folder_ / output,
                             .image_folder = folder_.path(),
                             .batch = batch,
                             .system = {}},
                            generate_);
  }

  std::string text_of(const std::string& name) { return read_file(folder_ / name); }

  support::TemporaryFolder folder_;
  Assistant assistant_;
  GenerateConfig generate_{.max_new_tokens = 6, .ignore_eos = true};
};

TEST_F(Questions, AreAnsweredInOrderInTheReferencesFormat) {
  const auto report = run("a.jsonl");
  EXPECT_EQ(report.questions, 5);
  EXPECT_EQ(report.failed, 0);
  const std::string text = text_of("a.jsonl");
  EXPECT_THAT(text, HasSubstr(R"({"question_id": 7, "prompt": "What is it?", "text": ")"));
  EXPECT_THAT(text, HasSubstr(R"("prompt": "Caf\u00e9?\nAnswer briefly.")"));
  EXPECT_THAT(text, HasSubstr(R"("model_id": "tiny", "metadata": {}})"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
  std::set<std::string> answer_ids;
  std::string ids;
  for (std::size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1) {
    const auto line = parse_json(text.substr(begin, text.find('\n', begin) - begin), "answers");
    ids += line["question_id"].dump() + " ";
    answer_ids.insert(line["answer_id"]);
    EXPECT_EQ(line["answer_id"].get<std::string>().size(), 22u);
  }
  EXPECT_EQ(ids, R"(7 "x" 7 9 10 )");
  EXPECT_EQ(answer_ids.size(), 5u);
}

TEST_F(Questions, RawTextIsAllTheModelGets) {
  const auto answer_to = [&](const std::string& text, bool raw) {
    write_file(folder_ / "one.jsonl", Json{{"question_id", 1}, {"text", text}}.dump());
    std::filesystem::remove(folder_ / "one.out");
    answer_questions(assistant_,
                     {.input = folder_ / "one.jsonl", .output = folder_ / "one.out", .raw = raw},
                     generate_);
    return parse_json(text_of("one.out"), "answer")["text"].get<std::string>();
  };
  text::Conversation conversation;
  conversation.messages = {{text::Role::user, "No picture"}};
  const auto rendered = text::render_open(assistant_.encoder.chat(), conversation).text;
  EXPECT_EQ(answer_to(rendered, true), answer_to("No picture", false));
  EXPECT_NE(answer_to(rendered, false), answer_to("No picture", false));
}

TEST_F(Questions, BatchesDoNotChangeAByte) {
  run("one.jsonl");
  run("two.jsonl", 2);
  run("all.jsonl", 8);
  EXPECT_EQ(text_of("two.jsonl"), text_of("one.jsonl"));
  EXPECT_EQ(text_of("all.jsonl"), text_of("one.jsonl"));
}

TEST_F(Questions, AKilledRunGoesOnWhereItStopped) {
  run("whole.jsonl", 2);
  const std::string whole = text_of("whole.jsonl");
  for (std::size_t cut = 0; cut <= whole.size(); cut += 41) {
    write_file(folder_ / "cut.jsonl", whole.substr(0, cut));
    const auto report = run("cut.jsonl", 2);
    const auto kept = std::count(whole.begin(), whole.begin() + static_cast<long>(cut), '\n');
    EXPECT_EQ(report.answered_before, kept);
    EXPECT_EQ(text_of("cut.jsonl"), whole) << "cut after " << cut << " bytes";
  }
}

TEST_F(Questions, ABrokenQuestionIsNamedAndTheRestIsAnswered) {
  folder_.write("b.ppm", "P6 30 50 255\nshort");
  const auto report = run("a.jsonl", 2);
  EXPECT_EQ(report.failed, 2);
  EXPECT_EQ(report.first_fault, Fault::data);
  EXPECT_THAT(report.first_error, HasSubstr("q.jsonl:2"));
  EXPECT_THAT(report.first_error, HasSubstr("b.ppm"));
  EXPECT_THAT(text_of("a.jsonl"), HasSubstr(R"("text": "", )"));
  EXPECT_THAT(text_of("a.jsonl"), HasSubstr(R"("metadata": {"error": ")"));
}

TEST_F(Questions, FailedOnesAreAskedAgainByTheNextRun) {
  run("whole.jsonl", 2);
  folder_.write("b.ppm", "P6 30 50 255\nshort");
  run("a.jsonl", 2);
  const auto again = run("a.jsonl", 2);
  EXPECT_EQ(again.answered_before, 3);
  EXPECT_EQ(again.failed, 2);
  EXPECT_THAT(again.first_error, HasSubstr("q.jsonl:2"));
  write_picture("b.ppm", 30, 50, 90);
  EXPECT_EQ(run("a.jsonl", 2).failed, 0);
  EXPECT_EQ(text_of("a.jsonl"), text_of("whole.jsonl"));
  EXPECT_EQ(run("a.jsonl", 2).answered_before, 5);
}

TEST_F(Questions, ImagesOutsideTheFolderAreRefused) {
  write_file(folder_ / "q.jsonl", R"({"question_id": 1, "image": "../x.ppm", "text": "?"})");
  const auto report = run("a.jsonl");
  EXPECT_EQ(report.failed, 1);
  EXPECT_THAT(report.first_error, HasSubstr("leads outside"));
}

TEST_F(Questions, AnswersOfOtherQuestionsOrModelsAreNotTouched) {
  run("a.jsonl");
  const std::string before = text_of("a.jsonl");
  assistant_.name = "another";
  EXPECT_THAT(error_of(Fault::data, [&] { run("a.jsonl"); }), HasSubstr("another"));
  assistant_.name = "tiny";
  write_file(folder_ / "q.jsonl", R"({"question_id": 8, "text": "Other"})");
  const auto message = error_of(Fault::data, [&] { run("a.jsonl"); });
  EXPECT_THAT(message, HasSubstr("a.jsonl:1"));
  EXPECT_THAT(message, HasSubstr("another question"));
  EXPECT_EQ(text_of("a.jsonl"), before);
}

TEST_F(Questions, MalformedQuestionsAreNamedByLine) {
  const auto message_for = [&](const std::string& lines) {
    write_file(folder_ / "q.jsonl", lines);
    return error_of(Fault::data, [&] { run("a.jsonl"); });
  };
  EXPECT_THAT(message_for("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": 2}\n"),
              HasSubstr("q.jsonl:2: has no \"text\""));
  EXPECT_THAT(message_for("{\"text\": \"a\"}"), HasSubstr("question_id"));
  EXPECT_THAT(message_for("{\"question_id\": 1, \"text\": 5}"), HasSubstr("not a string"));
  EXPECT_THAT(message_for("{\"question_id\": 1, \"text\": \"a\", \"image\": 5}"),
              HasSubstr("\"image\""));
  EXPECT_THAT(message_for("[1]"), HasSubstr("q.jsonl:1"));
  EXPECT_THAT(message_for("{"), HasSubstr("q.jsonl:1"));
}

TEST_F(Questions, DrawsDoNotDependOnBatches) {
  generate_.sampling.temperature = 1;
  run("one.jsonl");
  run("all.jsonl", 8);
  EXPECT_EQ(text_of("all.jsonl"), text_of("one.jsonl"));
}

TEST(PythonJson, WritesAsJsonDumpsDoes) {
  const auto json =
      parse_json(R"({"a": [1, 2.5, "é\n", {}], "b": {"c": null, "d": true}, "e": []})", "text");
  EXPECT_EQ(python_json(json),
            R"({"a": [1, 2.5, "\u00e9\n", {}], "b": {"c": null, "d": true}, "e": []})");
}

}  // namespace
}  // namespace llava::generate
