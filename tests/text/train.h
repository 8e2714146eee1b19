// SentencePiece models of any settings, for tests that compare with the library.
#pragma once

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace llava::text {

class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ == lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t next_ = 0;
};

/// A model trained with Llama's settings but for those in `extra`.
inline std::string train(const std::vector<std::string>& lines,
                         const std::map<std::string, std::string>& extra) {
  std::unordered_map<std::string, std::string> settings{
      {"model_type", "bpe"},        {"byte_fallback", "true"},
      {"split_digits", "true"},     {"normalization_rule_name", "identity"},
      {"num_threads", "1"},         {"remove_extra_whitespaces", "false"},
      {"minloglevel", "2"},         {"allow_whitespace_only_pieces", "true"},
      {"hard_vocab_limit", "false"}};
  for (const auto& [key, value] : extra) settings[key] = value;
  std::string model;
  Lines sentences(lines);
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

}  // namespace llava::text
