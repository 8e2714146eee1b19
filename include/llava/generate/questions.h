// A file of questions -> a file of answers, one JSON object a line each, in order. A run that was
// killed goes on where it stopped. Formats: haotian-liu/LLaVA 1.2.2, eval/model_vqa_loader.py.
#pragma once

#include "llava/base/config.h"
#include "llava/generate/generator.h"

#include <string>

namespace llava::generate {

struct QuestionsConfig {
  std::string input;   // JSON lines: question_id, text, image (a name or a list of names)
  std::string output;  // JSON lines: question_id, prompt, text, answer_id, model_id, metadata
  std::string image_folder = {};           // where the images' names lead
  std::int64_t batch = 1;                  // questions answered together
  bool with_ids = false;                   // answers also have "ids"
  bool raw = false;                        // a question's text is all the model gets: no template
  std::optional<std::string> system = {};  // instead of the template's system text
};

struct QuestionsReport {
  std::int64_t questions = 0;
  std::int64_t answered_before = 0;  // found in `output`
  std::int64_t failed = 0;           // answered with "" and {"error": ...} as metadata
  std::string first_error;
  Fault first_fault = Fault::failure;
};

/// Answers what `output` does not answer yet. A last line of it that was torn is cut; answers are
/// appended a batch at a time, each batch in one write. A question whose image is missing or
/// broken, or that does not fit, gets an empty answer and the run goes on; the next run asks it
/// again and puts the answer in its place.
/// Throws Error(data) if a file is malformed or `output` answers other questions.
QuestionsReport answer_questions(Assistant& assistant, const QuestionsConfig& config,
                                 const GenerateConfig& generate);

/// One line as Python's json.dumps writes it: ", " and ": " between parts, ASCII only.
std::string python_json(const Json& json);

}  // namespace llava::generate
