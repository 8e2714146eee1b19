// Tokens -> the text that people see: half a character and what may yet become a stop string are
// held back, and white space around the answer is left out.
#pragma once

#include "llava/text/tokenizer.h"

#include <string>
#include <vector>

namespace llava::generate {

class AnswerText {
 public:
  /// `stop_strings`: the text ends where the first of them begins.
  AnswerText(const text::Tokenizer& tokenizer, std::vector<std::string> stop_strings);

  /// Takes the next token and returns the text that became certain with it; may be empty. After a
  /// stop string nothing more comes.
  std::string push(std::int64_t id);

  /// No more tokens come: returns what was held back.
  std::string finish();

  /// All that was returned so far. Its end is the answer's once stopped() or after finish().
  const std::string& text() const { return text_; }

  /// Whether a stop string came.
  bool stopped() const { return stopped_; }

  /// How many of the pushed tokens lie before the stop string, and whether the last of them ends
  /// where it begins; all of them when none came.
  std::size_t tokens_before_stop() const { return tokens_before_stop_; }
  bool stop_is_between_tokens() const { return stop_is_between_tokens_; }

 private:
  std::string take(const std::string& decoded);
  std::string release(std::size_t bytes);
  void find_stop();

  text::StreamDecoder decoder_;
  std::vector<std::string> stop_strings_;
  std::string text_;
  std::string held_;               // decoded, not returned yet
  std::size_t released_ = 0;       // decoded bytes that left held_
  std::vector<std::size_t> ends_;  // decoded bytes after each token
  bool stopped_ = false, stop_is_between_tokens_ = true;
  std::size_t tokens_before_stop_ = 0;
};

}  // namespace llava::generate
