// A small world that two CPU cores can learn: coloured shapes on noisy backgrounds, captions
// (Stage 1), conversations (Stage 2), held-out questions, and text for a first language model.
// Everything follows from the seed; no scene is in both splits.
#pragma once

#include "llava/media/image.h"

#include <cstdint>
#include <string>
#include <vector>

namespace llava::data {

/// Told apart by where they are filled, which few patches and a young vision tower can see.
enum class Shape { square, ring, cross };
enum class Color { red, green, blue, yellow, purple };

/// One thing in a scene; shapes and colours are unique within a scene, so either names it.
struct Thing {
  Shape shape = Shape::square;
  Color color = Color::red;
  bool large = false;
  int cell = 0;  // 0 top left, 1 top right, 2 bottom left, 3 bottom right
};

/// One to three things, ordered by cell.
struct Scene {
  std::vector<Thing> things;
};

struct Question {
  std::string kind;  // "color", "shape", "position", "size", "count", "comparison" or "yes/no"
  std::string question, answer;
};

struct ScenesConfig {
  std::int64_t seed = 1;
  std::int64_t image_size = 84;    // pixels across
  std::int64_t num_single = 6000;  // training pictures of one thing
  std::int64_t num_train = 16000;  // training pictures of one to three things
  std::int64_t num_captions_test = 300;
  std::int64_t num_questions = 700;  // held-out, spread evenly over the kinds
  std::int64_t num_texts = 36000;    // conversations without pictures
  std::int64_t num_turns = 6;        // most questions of a conversation

  template <class Field>
  void fields(Field& field) {
    field("scenes_seed", seed, "seed of scenes, pictures and words");
    field("image_size", image_size, "pixels across a picture");
    field("num_single", num_single, "training pictures of one thing");
    field("num_train", num_train, "training pictures of one to three things");
    field("num_captions_test", num_captions_test, "held-out pictures with captions");
    field("num_questions", num_questions, "held-out questions, spread evenly over their kinds");
    field("num_texts", num_texts, "conversations without pictures");
    field("num_turns", num_turns, "most questions of a conversation");
  }
};

/// "A large red ring at the top left and a small blue square at the bottom right."
std::string caption(const Scene& scene);

/// The picture of a scene: things jittered, edges smooth, background and noise from `seed`.
media::Image draw(const Scene& scene, std::int64_t size, std::uint64_t seed);

/// Every question that has one right answer for this scene; the choice among wordings and of the
/// absent thing in yes/no follows from `seed`.
std::vector<Question> questions(const Scene& scene, std::uint64_t seed);

/// Whether a scene belongs to the held-out split.
bool is_held_out(const Scene& scene);

/// Writes into `folder`: images/, single.json and captions.json (Stage 1 form), shuffled.json (the
/// same captions on other pictures), talk.json (Stage 2 form), text.json (no pictures),
/// captions_test.json, questions.jsonl (with "kind" and "answer"), blank_questions.jsonl (the same
/// about a gray picture), corpus.txt (for a vocabulary).
void make_scenes(const std::string& folder, const ScenesConfig& config);

}  // namespace llava::data
