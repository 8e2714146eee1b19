// A conversation kept alive: keys and values of all turns stay, so that a turn costs its own tokens
// only.
#pragma once

#include "llava/generate/generator.h"

#include <memory>

namespace llava::generate {

/// One conversation with an assistant, which several may share, one at a time.
class Session {
 public:
  /// `system`: replaces the template's system text.
  Session(Assistant& assistant, const GenerateConfig& config,
          std::optional<std::string> system = {});

  /// Appends a user's turn and answers it. Pictures go where the text's marks are, or in front.
  /// `on_text` returning false ends the answer there. Throws Error(usage) if marks and pictures
  /// disagree, Error(capacity) if the context is too small, and what on_text throws; the
  /// conversation is then as it was before.
  Answer ask(const std::string& text, std::vector<input::Picture> pictures = {},
             const OnText& on_text = {});

  /// Answers the last turn anew, with other random numbers. Throws Error(usage) if there is none.
  Answer retry(const OnText& on_text = {});

  /// Forgets all turns.
  void clear();

  const text::Conversation& conversation() const { return conversation_; }
  std::int64_t tokens() const { return row_.cache.length(); }  // held in keys and values
  const Timings& timings() const { return timings_; }          // of the last turn

 private:
  /// What the keys and values stand for: everything before message `messages`, which is `length`
  /// tokens and, not among them yet, the ids in `pending`.
  struct Held {
    std::size_t messages = 0;
    std::int64_t length = 0;
    std::vector<std::int64_t> pending;
    std::vector<std::int64_t> seen;
  };

  void reserve(std::int64_t tokens);
  void prefill_turn();
  Answer answer_turn(const OnText& on_text);
  void hold(const Answer& answer);
  void go_back_to(const Held& held);

  Assistant& assistant_;
  GenerateConfig config_;
  std::uint64_t draws_ = 0;  // answers drawn so far, each from a random stream of its own
  text::Conversation conversation_;
  std::vector<std::vector<input::Picture>> pictures_;  // of each message
  Row row_;
  Held held_;        // whole turns
  Held turn_start_;  // what was held before the last turn
  Held prompt_;      // the last turn's prompt, whose next logits are prompt_logits_ if defined
  torch::Tensor prompt_logits_;
  Timings timings_;
};

}  // namespace llava::generate
