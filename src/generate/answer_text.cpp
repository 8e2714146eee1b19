#include "llava/generate/answer_text.h"

#include <algorithm>
#include <utility>

namespace llava::generate {
namespace {

constexpr const char* kWhiteSpace = " \t\n\v\f\r";

/// Bytes at the end of `text` that are the beginning of a stop string.
std::size_t begun_stop(const std::string& text, const std::vector<std::string>& stop_strings) {
  std::size_t longest = 0;
  for (const auto& stop : stop_strings)
    for (std::size_t n = std::min(stop.size(), text.size()); n > longest; --n)
      if (text.compare(text.size() - n, n, stop, 0, n) == 0) longest = n;
  return longest;
}

}  // namespace

AnswerText::AnswerText(const text::Tokenizer& tokenizer, std::vector<std::string> stop_strings)
    : decoder_(tokenizer), stop_strings_(std::move(stop_strings)) {
  std::erase(stop_strings_, "");
}

/// Moves the first `bytes` of what is held to the text, except white space at either end of it.
std::string AnswerText::release(std::size_t bytes) {
  const std::size_t last = held_.find_last_not_of(kWhiteSpace, bytes == 0 ? 0 : bytes - 1);
  const std::size_t end = bytes == 0 || last == std::string::npos ? 0 : last + 1;
  std::string out = held_.substr(0, end);
  held_.erase(0, end);
  released_ += end;
  if (text_.empty()) out.erase(0, std::min(out.find_first_not_of(kWhiteSpace), out.size()));
  text_ += out;
  return out;
}

/// Sets stopped_ and cuts what is held before the earliest stop string in it.
void AnswerText::find_stop() {
  std::size_t at = std::string::npos;
  for (const auto& stop : stop_strings_) at = std::min(at, held_.find(stop));
  if (at == std::string::npos) return;
  stopped_ = true;
  held_.resize(at);
  const std::size_t end = released_ + at;
  const auto after = std::upper_bound(ends_.begin(), ends_.end(), end);
  tokens_before_stop_ = static_cast<std::size_t>(after - ends_.begin());
  stop_is_between_tokens_ = end == (after == ends_.begin() ? 0 : *(after - 1));
}

std::string AnswerText::take(const std::string& decoded) {
  held_ += decoded;
  ends_.push_back(released_ + held_.size());
  tokens_before_stop_ = ends_.size();
  find_stop();
  return release(stopped_ ? held_.size() : held_.size() - begun_stop(held_, stop_strings_));
}

std::string AnswerText::push(std::int64_t id) { return stopped_ ? "" : take(decoder_.push(id)); }

std::string AnswerText::finish() {
  if (stopped_) return "";
  held_ += decoder_.finish();
  find_stop();
  return release(held_.size());
}

}  // namespace llava::generate
