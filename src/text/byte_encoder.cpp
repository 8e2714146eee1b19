#include "byte_encoder.h"

#include "llava/base/check.h"

namespace llava::text {
namespace {

/// The characters of the 256 bytes: printable Latin-1 as it is, the others from U+0100 on.
const std::array<char32_t, 256>& printable_codes() {
  static const auto kCodes = [] {
    std::array<char32_t, 256> codes{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      codes[byte] = printable ? byte : next++;
    }
    return codes;
  }();
  return kCodes;
}

using Characters = std::vector<SourceCharacter>;

/// Cuts a text into words; each function returns the end of what it matches at `at`, or `at`.
class WordCutter {
 public:
  WordCutter(const Characters& text, WordPattern pattern) : text_(text), pattern_(pattern) {
    classes_.reserve(text.size());
    for (const auto& character : text) classes_.push_back(class_of(character.code));
  }

  /// The end of the word that begins at `at`.
  std::size_t next(std::size_t at) const {
    std::size_t end = contraction(at);
    if (end == at) end = pattern_.gpt_2 ? gpt_2_word(at) : cl100k_word(at);
    return end == at ? spaces(at) : end;
  }

 private:
  static constexpr auto kLetter = CharacterClass::letter, kNumber = CharacterClass::number,
                        kSpace = CharacterClass::space, kOther = CharacterClass::other;

  bool is(std::size_t at, CharacterClass wanted) const {
    return at < classes_.size() && classes_[at] == wanted;
  }
  bool is_code(std::size_t at, char32_t code) const {
    return at < text_.size() && text_[at].code == code;
  }
  bool is_newline(std::size_t at) const { return is_code(at, '\n') || is_code(at, '\r'); }
  std::size_t run(std::size_t at, CharacterClass wanted) const {
    while (is(at, wanted)) ++at;
    return at;
  }
  /// The letter at `at` as the contraction's pattern compares it: (?i:...) but in GPT-2.
  char32_t folded(std::size_t at) const {
    if (at >= text_.size()) return 0;
    const auto code = text_[at].code;
    if (pattern_.gpt_2) return code;
    if (code == 0x17F) return 's';  // the long s folds to s
    return code >= 'A' && code <= 'Z' ? code + 32 : code;
  }

  /// 's|'t|'re|'ve|'m|'ll|'d
  std::size_t contraction(std::size_t at) const {
    if (!is_code(at, '\'')) return at;
    const auto one = folded(at + 1), two = folded(at + 2);
    if (one == 's' || one == 't' || one == 'm' || one == 'd') return at + 2;
    const bool pair =
        (one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l');
    return pair ? at + 3 : at;
  }

  /// ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+`
  std::size_t gpt_2_word(std::size_t at) const {
    const std::size_t begin = at + is_code(at, ' ');
    for (const auto wanted : {kLetter, kNumber, kOther}) {
      if (is(begin, wanted)) return run(begin, wanted);
    }
    return at;
  }

  /// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+`
  std::size_t cl100k_word(std::size_t at) const {
    if (is(at, kLetter)) return run(at, kLetter);
    if (!is(at, kNumber) && !is_newline(at) && is(at + 1, kLetter)) return run(at + 1, kLetter);
    if (is(at, kNumber)) {
      return std::min(run(at, kNumber), at + static_cast<std::size_t>(pattern_.digits));
    }
    const std::size_t begin = at + is_code(at, ' ');
    if (is(begin, kOther)) {
      std::size_t end = run(begin, kOther);
      while (is_newline(end)) ++end;
      return end;
    }
    for (std::size_t end = run(at, kSpace); end > at; --end) {
      if (is_newline(end - 1)) return end;
    }
    return at;
  }

  /// `\s+(?!\S)|\s+`: a run of spaces leaves its last to the word after it.
  std::size_t spaces(std::size_t at) const {
    const std::size_t end = run(at, kSpace);
    return end < text_.size() && end > at + 1 ? end - 1 : end;
  }

  const Characters& text_;
  WordPattern pattern_;
  std::vector<CharacterClass> classes_;
};

}  // namespace

WordPattern word_pattern(const std::string& regex, const std::string& where) {
  const auto cl100k = [](const char* numbers) {
    return std::string(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)") + numbers +
           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  if (regex == cl100k(R"(\p{N}{1,3})")) return {.gpt_2 = false, .digits = 3};
  if (regex == cl100k(R"(\p{N})")) return {.gpt_2 = false, .digits = 1};
  if (regex == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") {
    return {.gpt_2 = true};
  }
  fail(Fault::data, where, ": the pre-tokenizer's pattern ", regex,
       " is not one of GPT-2, Llama-3 or Qwen2; this tokenizer is not supported");
}

std::string bytes_of_printable(std::string_view piece) {
  static const auto kBytes = [] {
    std::array<int, 0x180> bytes{};
    bytes.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      bytes[printable_codes()[static_cast<std::size_t>(byte)]] = byte;
    }
    return bytes;
  }();
  std::string out;
  for (std::size_t at = 0; at < piece.size();) {
    const auto here = character_at(piece, at);
    const int byte = here.code < kBytes.size() ? kBytes[here.code] : -1;
    if (byte >= 0) {
      out += static_cast<char>(byte);
    } else {
      out += piece.substr(at, here.length);
    }
    at += here.length;
  }
  return out;
}

std::string printable_of_byte(unsigned char byte) {
  std::string text;
  append_utf8(text, printable_codes()[byte]);
  return text;
}

ByteEncoder::ByteEncoder(const ByteVocabulary& vocabulary)
    : bpe_(vocabulary.merges), pattern_(vocabulary.pattern), nfc_(vocabulary.nfc) {
  bytes_.fill(Bpe::kNone);
  for (std::uint32_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const auto bytes = bytes_of_printable(vocabulary.pieces[id]);
    if (bytes.empty()) continue;
    if (bytes.size() == 1) bytes_[static_cast<unsigned char>(bytes[0])] = id;
    if (vocabulary.ignore_merges) words_.emplace(bytes, id);
  }
}

void ByteEncoder::encode(std::string_view text, Range segment, std::vector<Token>& out) const {
  if (segment.begin == segment.end) return;
  const auto whole = text.substr(0, segment.end);
  Characters characters;
  for (std::size_t at = segment.begin; at < segment.end;) {
    const auto here = character_at(whole, at);
    const auto begin = static_cast<std::uint32_t>(at);
    at += here.length;
    characters.push_back({here.code, begin, static_cast<std::uint32_t>(at)});
  }
  if (nfc_) normalize_nfc(characters);

  const WordCutter cutter(characters, pattern_);
  std::vector<Symbol> word;
  Bpe::Scratch scratch;
  for (std::size_t begin = 0; begin < characters.size();) {
    const std::size_t end = cutter.next(begin);
    emit_word(characters, begin, end, word, scratch, out);
    begin = end;
  }
}

void ByteEncoder::emit_word(const Characters& text, std::size_t begin, std::size_t end,
                            std::vector<Symbol>& word, Bpe::Scratch& scratch,
                            std::vector<Token>& out) const {
  word.clear();
  std::string bytes;
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t first = bytes.size();
    append_utf8(bytes, text[i].code);
    const auto size = static_cast<std::uint32_t>(bytes.size() - first);
    const bool as_written = text[i].end - text[i].begin == size;
    for (std::uint32_t k = 0; k < size; ++k) {
      const auto id = bytes_[static_cast<unsigned char>(bytes[first + k])];
      const auto from = text[i].begin + (as_written ? k : 0);
      word.push_back({id, from, as_written ? from + 1 : text[i].end});
    }
  }
  if (const auto whole = words_.find(bytes); whole != words_.end()) {
    out.push_back({whole->second, {text[begin].begin, word.back().end}});
    return;
  }
  bpe_.merge(word, 0, scratch);
  for (const auto& symbol : word) {
    if (symbol.id != Bpe::kNone) out.push_back({symbol.id, {symbol.begin, symbol.end}});
  }
}

}  // namespace llava::text
