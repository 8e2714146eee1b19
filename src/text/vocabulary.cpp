#include "llava/text/vocabulary.h"

#include "llava/base/check.h"
#include "llava/base/config.h"
#include "llava/base/files.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cstring>
#include <unordered_map>

namespace llava::text {
namespace {

// ── ModelProto, as far as it is written here ─────────────────────────────────────────────────────
// Source: google/sentencepiece, src/sentencepiece_model.proto. Field numbers and types:
// 1 piece {1 string, 2 float score, 3 type}, 2 trainer_spec, 3 normalizer_spec.

enum class PieceType { normal = 1, unknown = 2, control = 3, byte = 6 };

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7f) | 0x80);
  return bytes + static_cast<char>(value);
}
std::string number(int field, std::uint64_t value) {
  return varint(static_cast<std::uint64_t>(field) << 3) + varint(value);
}
std::string text(int field, const std::string& bytes) {
  return varint((static_cast<std::uint64_t>(field) << 3) | 2) + varint(bytes.size()) + bytes;
}
std::string score(int field, float value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return varint((static_cast<std::uint64_t>(field) << 3) | 5) + bytes;
}
std::string piece(const std::string& name, float at, PieceType type) {
  return text(1, text(1, name) + score(2, at) + number(3, static_cast<std::uint64_t>(type)));
}

/// SentencePiece reads sentences through this.
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

std::int64_t piece_count(const std::string& model) {
  sentencepiece::SentencePieceProcessor processor;
  const auto status = processor.LoadFromSerializedProto(model);
  expect(status.ok(), Fault::failure, "a new vocabulary cannot be read back: ", status.ToString());
  return processor.GetPieceSize();
}

}  // namespace

std::string train_vocabulary(const std::vector<std::string>& lines, std::int64_t size) {
  const std::unordered_map<std::string, std::string> settings{
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(size)},
      {"character_coverage", "1.0"},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"num_threads", "1"},
      {"minloglevel", "2"}};
  Lines sentences(lines);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  expect(status.ok(), Fault::usage, "a vocabulary of ", size,
         " pieces cannot be trained on this text (", status.error_message(), ")");
  return model;
}

std::string character_vocabulary() {
  std::string model = piece("<unk>", 0, PieceType::unknown) + piece("<s>", 0, PieceType::control) +
                      piece("</s>", 0, PieceType::control);
  constexpr char kHex[] = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte)
    model +=
        piece(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">", 0, PieceType::byte);
  float rank = 0;
  model += piece("\u2581", rank--, PieceType::normal);
  for (char c = '!'; c <= '~'; ++c) model += piece(std::string(1, c), rank--, PieceType::normal);
  constexpr std::uint64_t pieces = 3 + 256 + 1 + ('~' - '!' + 1);
  // trainer_spec: 3 model_type (2: BPE), 4 vocab_size, 35 byte_fallback; 40 unk_id, 41 bos_id,
  // 42 eos_id, 43 pad_id (-1).
  model += text(2, number(3, 2) + number(4, pieces) + number(35, 1) + number(40, 0) +
                       number(41, 1) + number(42, 2) + number(43, ~std::uint64_t{0}));
  // normalizer_spec: 1 name, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces.
  model += text(3, text(1, "identity") + number(3, 1) + number(4, 0) + number(5, 1));
  return model;
}

void save_tokenizer(const std::string& folder, const std::string& model) {
  make_folder(folder);
  const auto size = piece_count(model);
  // Legacy: what follows a picture begins as a text of its own does, here and in transformers.
  const Json config{{"tokenizer_class", "LlamaTokenizer"},
                    {"add_bos_token", true},
                    {"add_eos_token", false},
                    {"bos_token", "<s>"},
                    {"eos_token", "</s>"},
                    {"unk_token", "<unk>"},
                    {"pad_token", "<pad>"},
                    {"legacy", true},
                    {"clean_up_tokenization_spaces", false},
                    {"padding_side", "left"}};
  const Json special{
      {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}, {"pad_token", "<pad>"}};
  write_file(folder + "/tokenizer.model", model);
  write_file(folder + "/added_tokens.json", json_text({{"<image>", size}, {"<pad>", size + 1}}));
  write_file(folder + "/special_tokens_map.json", json_text(special));
  write_file(folder + "/tokenizer_config.json", json_text(config));
}

}  // namespace llava::text
