#include "llava/generate/questions.h"

#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/base/workers.h"

#include <algorithm>
#include <filesystem>

namespace llava::generate {
namespace {

struct Question {
  Json id;
  std::string text;
  std::vector<std::string> images;
  std::string where;  // "file:line"
};

/// A question as the model takes it, or why it cannot.
struct Prepared {
  input::Example example;
  std::optional<Error> error;
};

/// Calls `use(line, where, bytes before the line's end)` for each line that is not blank.
template <class Use>
void for_each_line(const std::string& text, const std::string& path, Use use) {
  std::size_t begin = 0, number = 1;
  for (; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    if (line.find_first_not_of(" \t\r") != line.npos)
      use(line, path + ":" + std::to_string(number), end);
    begin = end + 1;
  }
}

const Json& member(const Json& object, const char* key, const std::string& where) {
  expect(object.is_object() && object.contains(key), Fault::data, where, ": has no \"", key,
         "\"; each line must be an object with question_id and text");
  return object[key];
}

Question read_question(std::string_view line, const std::string& where) {
  const Json json = parse_json(line, where);
  Question question{
      .id = member(json, "question_id", where), .text = {}, .images = {}, .where = where};
  const Json& text = member(json, "text", where);
  expect(text.is_string(), Fault::data, where, ": \"text\" is not a string");
  question.text = text.get<std::string>();
  const Json images = json.value("image", Json());
  for (const auto& image : images.is_array() ? images : Json::array({images})) {
    if (image.is_null()) continue;
    expect(image.is_string(), Fault::data, where, ": \"image\" is not a name or a list of names");
    question.images.push_back(image.get<std::string>());
  }
  return question;
}

std::vector<Question> read_questions(const std::string& path) {
  std::vector<Question> questions;
  for_each_line(read_file(path), path, [&](std::string_view line, const std::string& where, auto) {
    questions.push_back(read_question(line, where));
  });
  return questions;
}

/// What of the answers' file stays: whole lines that answer the first questions.
struct Done {
  std::vector<std::string> lines;
  std::vector<std::size_t> failed;  // of the lines, those that tell of an error
  std::size_t bytes = 0;

  std::size_t answers() const { return lines.size(); }
};

bool tells_of_an_error(const Json& answer) {
  const Json metadata = answer.value("metadata", Json());
  return metadata.is_object() && metadata.contains("error");
}

void expect_answers(const Json& answer, const Question& question, const std::string& model,
                    const std::string& where) {
  const auto value = [&](const char* key) { return answer.value(key, Json()); };
  expect(value("question_id") == question.id && value("prompt") == question.text, Fault::data,
         where, ": answers another question than ", question.where,
         "; remove the file or choose another --output");
  expect(value("model_id") == model, Fault::data, where, ": was answered by ",
         value("model_id").dump(), ", this model is \"", model,
         "\"; remove the file or choose another --output");
}

Done find_done(const std::string& path, const std::vector<Question>& questions,
               const std::string& model) {
  Done done;
  if (!std::filesystem::exists(path)) return done;
  const std::string text = read_file(path);
  const std::size_t whole = text.rfind('\n') + 1;  // 0 when there is none
  for_each_line(
      text.substr(0, whole), path,
      [&](std::string_view line, const std::string& where, std::size_t end) {
        Json answer;
        try {
          answer = parse_json(line, where);
        } catch (const Error&) {
          if (end + 1 < whole) throw;
          return;  // the last line was torn
        }
        expect(
            done.answers() < questions.size(), Fault::data, where,
            ": more answers than there are questions; remove the file or choose another --output");
        expect_answers(answer, questions[done.answers()], model, where);
        if (tells_of_an_error(answer)) done.failed.push_back(done.answers());
        done.lines.push_back(std::string(line) + "\n");
        done.bytes = end + 1;
      });
  return done;
}

Prepared prepare(const Assistant& assistant, const Question& question,
                 const QuestionsConfig& config, const GenerateConfig& generate) {
  try {
    std::vector<input::Picture> pictures;
    for (const auto& image : question.images)
      pictures.push_back(
          read_picture(assistant, path_inside(config.image_folder, image, question.where)));
    const auto marked = with_marks(question.text, pictures);
    text::Conversation conversation;
    conversation.system = config.system;
    conversation.messages = {{text::Role::user, marked}};
    auto example = config.raw ? assistant.encoder.encode_raw(marked, std::move(pictures))
                              : assistant.encoder.encode_prompt(conversation, std::move(pictures));
    expect_fits(assistant, example, 0, generate.max_new_tokens == 0 ? 0 : 1);
    return {std::move(example), std::nullopt};
  } catch (const Error& error) {
    return {{}, error};
  }
}

/// 22 characters of shortuuid's alphabet, the same for the same question and seed.
std::string answer_id(std::uint64_t seed, std::size_t number) {
  constexpr std::string_view kAlphabet =
      "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
  Random random(~seed, number);
  std::string id;
  while (id.size() < 22)
    id += kAlphabet[static_cast<std::size_t>(random.uniform() * kAlphabet.size())];
  return id;
}

/// The answers of questions [first, first + prepared.size()), as lines.
std::string answer_lines(Assistant& assistant, const std::vector<Question>& questions,
                         std::size_t first, std::vector<Prepared> prepared,
                         const QuestionsConfig& config, const GenerateConfig& generate) {
  std::vector<input::Example> examples;
  std::vector<std::uint64_t> numbers;
  for (std::size_t i = 0; i < prepared.size(); ++i) {
    if (prepared[i].error) continue;
    examples.push_back(std::move(prepared[i].example));
    numbers.push_back(first + i);
  }
  const auto answers = answer(assistant, examples, generate, numbers);
  std::string lines;
  auto next = answers.begin();
  for (std::size_t i = 0; i < prepared.size(); ++i) {
    const auto& error = prepared[i].error;
    const auto& question = questions[first + i];
    Json line;
    line["question_id"] = question.id;
    line["prompt"] = question.text;
    line["text"] = error ? "" : next->text;
    line["answer_id"] = answer_id(generate.seed, first + i);
    line["model_id"] = assistant.name;
    line["metadata"] = error ? Json{{"error", error->what()}} : Json::object();
    if (config.with_ids) line["ids"] = error ? std::vector<std::int64_t>{} : next->ids;
    lines += python_json(line) + "\n";
    if (!error) ++next;
  }
  return lines;
}

void note_failure(QuestionsReport& report, const Question& question, const Error& error) {
  if (report.failed++ > 0) return;
  report.first_error = question.where + ": " + error.what();
  report.first_fault = error.fault();
}

/// Asks again what failed before: its picture may be there by now. The file is replaced whole.
void answer_failed_again(Assistant& assistant, const std::vector<Question>& questions, Done& done,
                         const QuestionsConfig& config, const GenerateConfig& generate,
                         QuestionsReport& report) {
  if (done.failed.empty()) return;
  for (const auto number : done.failed) {
    std::vector<Prepared> one;
    one.push_back(prepare(assistant, questions[number], config, generate));
    if (one[0].error) note_failure(report, questions[number], *one[0].error);
    done.lines[number] =
        answer_lines(assistant, questions, number, std::move(one), config, generate);
  }
  std::string text;
  for (const auto& line : done.lines) text += line;
  write_file(config.output, text);
  done.bytes = text.size();
}

}  // namespace

std::string python_json(const Json& json) {
  if (!json.is_structured())
    return json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  std::string text;
  for (const auto& [key, value] : json.items()) {
    if (!text.empty()) text += ", ";
    if (json.is_object()) text += python_json(Json(key)) + ": ";
    text += python_json(value);
  }
  return json.is_object() ? "{" + text + "}" : "[" + text + "]";
}

QuestionsReport answer_questions(Assistant& assistant, const QuestionsConfig& config,
                                 const GenerateConfig& generate) {
  generate.validate();
  expect(config.batch >= 1, Fault::usage, "batch must be 1 or more, got ", config.batch);
  const auto questions = read_questions(config.input);
  Done done = find_done(config.output, questions, assistant.name);

  QuestionsReport report;
  report.questions = static_cast<std::int64_t>(questions.size());
  report.answered_before = static_cast<std::int64_t>(done.answers() - done.failed.size());
  answer_failed_again(assistant, questions, done, config, generate, report);
  AppendFile output(config.output, done.bytes);

  // One thread reads and preprocesses images while the model answers.
  const auto batch = static_cast<std::size_t>(config.batch);
  BoundedQueue<Prepared> queue(2 * batch);
  WorkerGroup reader;
  struct Closer {
    BoundedQueue<Prepared>& queue;
    ~Closer() { queue.close(); }
  } closer{queue};
  reader.start(
      [&] {
        for (std::size_t i = done.answers(); i < questions.size(); ++i)
          if (!queue.push(prepare(assistant, questions[i], config, generate))) return;
      },
      [&] { queue.close(); });

  for (std::size_t begin = done.answers(); begin < questions.size();) {
    log::status("answered " + std::to_string(begin) + "/" + std::to_string(questions.size()));
    // Batches begin at multiples, so that a resumed run makes the same ones.
    const std::size_t end = std::min((begin / batch + 1) * batch, questions.size());
    std::vector<Prepared> prepared;
    while (prepared.size() < end - begin) {
      auto next = queue.pop();
      if (!next) break;  // the reader failed
      if (next->error) note_failure(report, questions[begin + prepared.size()], *next->error);
      prepared.push_back(std::move(*next));
    }
    if (prepared.size() < end - begin) reader.join();
    output.append(answer_lines(assistant, questions, begin, std::move(prepared), config, generate));
    begin = end;
  }
  log::status("");
  reader.join();
  return report;
}

}  // namespace llava::generate
