// What a run on the small world came to: scores by kind, losses, a sheet of pictures with questions
// and answers, as one HTML file and as JSON.
#pragma once

#include "llava/base/config.h"

#include <string>
#include <vector>

namespace llava::data {

/// Where the pieces of a run lie.
struct ScenesRun {
  std::string world;                    // folder of make_scenes
  std::string answers;                  // answers.jsonl to questions.jsonl
  std::string blank_answers;            // answers.jsonl to blank_questions.jsonl
  std::string stage1, control, stage2;  // --output_dir of the runs; control: shuffled captions
  std::vector<std::string> parents;     // --output_dir of the runs before, may be empty
  std::string minutes;                  // JSON object: phase -> minutes
  std::string model;                    // the final model folder

  template <class Field>
  void fields(Field& field) {
    field("world", world, "folder that make-scenes wrote");
    field("answers", answers, "answers to its questions.jsonl");
    field("blank_answers", blank_answers, "answers to its blank_questions.jsonl");
    field("stage1", stage1, "output_dir of Stage 1");
    field("control", control, "output_dir of Stage 1 on shuffled captions");
    field("stage2", stage2, "output_dir of Stage 2");
    field("parents", parents, "output_dir of a run before Stage 1; repeatable");
    field("minutes", minutes, "JSON file: minutes of each phase");
    field("scored_model", model, "the final model folder");
  }
};

/// {"questions", "score", "blank_score", "by_kind", "caption_loss", "shuffled_caption_loss",
/// "minutes", "peak_memory_mib", "model"}; scores are shares from 0 to 1. An answer counts when it
/// equals the expected one but for case, surrounding space and a final period.
/// Throws Error(data) naming a file or question that is missing.
Json scenes_report(const ScenesRun& run);

/// The report as a page that needs no server: curves, pictures, right and wrong answers alike.
std::string scenes_page(const ScenesRun& run, const Json& report);

}  // namespace llava::data
