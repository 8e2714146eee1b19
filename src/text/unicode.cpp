#include "unicode.h"

#include <algorithm>
#include <iterator>
#include <map>

namespace llava::text {
namespace {

struct CodeRange {
  char32_t begin, end;
};
struct CombiningRange {
  char32_t begin, end;
  std::uint8_t combining_class;
};
struct Decomposition {
  char32_t code, first, second;  // second is 0 when there is one part
  bool composes;
};

#include "unicode_tables.inc"

/// The range of a sorted table that holds `code`, or nullptr.
template <class Row, std::size_t size>
const Row* find_range(const Row (&table)[size], char32_t code) {
  const auto after = std::upper_bound(std::begin(table), std::end(table), code,
                                      [](char32_t c, const Row& row) { return c < row.begin; });
  return after != std::begin(table) && code < std::prev(after)->end ? std::prev(after) : nullptr;
}

int combining_class(char32_t code) {
  if (code < 0x300) return 0;
  const auto* range = find_range(kCombining, code);
  return range ? range->combining_class : 0;
}

void decompose(SourceCharacter character, std::vector<SourceCharacter>& out) {
  const auto code = character.code;
  const auto* row = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                     [](const Decomposition& d, char32_t c) { return d.code < c; });
  if (row == std::end(kDecompositions) || row->code != code) {
    out.push_back(character);
    return;
  }
  for (const auto part : {row->first, row->second}) {
    if (part) decompose({part, character.begin, character.end}, out);
  }
}

/// The character that two make, or 0.
char32_t compose(char32_t first, char32_t second) {
  // Hangul is arithmetic.  Source: The Unicode Standard, section 3.12.
  constexpr char32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTrail = 0x11A7;
  if (first - kLead < 19 && second - kVowel < 21) {
    return kSyllable + ((first - kLead) * 21 + (second - kVowel)) * 28;
  }
  const bool open_syllable = first - kSyllable < 11172 && (first - kSyllable) % 28 == 0;
  if (open_syllable && second > kTrail && second < kTrail + 28) return first + (second - kTrail);

  static const auto kPairs = [] {
    std::map<std::pair<char32_t, char32_t>, char32_t> pairs;
    for (const auto& row : kDecompositions) {
      if (row.composes) pairs[{row.first, row.second}] = row.code;
    }
    return pairs;
  }();
  const auto found = kPairs.find({first, second});
  return found == kPairs.end() ? 0 : found->second;
}

}  // namespace

Character character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code = lead & (0xFF >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {.cut = true};
    const unsigned char next = byte(i);
    // The second byte's bounds keep out overlong forms, surrogates and codes past U+10FFFF.
    const unsigned char low = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (next < low || next > high) return {};
    code = code << 6 | (next & 0x3F);
  }
  return {code, length, true, false};
}

void append_utf8(std::string& text, char32_t code) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

CharacterClass class_of(char32_t code) {
  // White_Space of Unicode 16 has what Python has, but not U+001C to U+001F.
  const bool separator = code >= 0x1C && code <= 0x1F;
  if (is_python_space(code) && !separator) return CharacterClass::space;
  if (find_range(kLetters, code)) return CharacterClass::letter;
  if (find_range(kNumbers, code)) return CharacterClass::number;
  return CharacterClass::other;
}

void normalize_nfc(std::vector<SourceCharacter>& text) {
  const auto is_plain = [](const SourceCharacter& c) { return c.code < 0x300; };
  if (std::all_of(text.begin(), text.end(), is_plain)) return;
  std::vector<SourceCharacter> parts;
  parts.reserve(text.size());
  for (const auto& character : text) decompose(character, parts);

  // Marks between two starters go in the order of their classes.
  const auto class_less = [](const SourceCharacter& a, const SourceCharacter& b) {
    return combining_class(a.code) < combining_class(b.code);
  };
  for (auto mark = parts.begin(); mark != parts.end();) {
    const auto is_starter = [](const SourceCharacter& c) { return !combining_class(c.code); };
    const auto end = std::find_if(mark, parts.end(), is_starter);
    std::stable_sort(mark, end, class_less);
    mark = std::find_if_not(end, parts.end(), is_starter);
  }

  text.clear();
  std::size_t starter = 0;
  int between = -1;  // class of the last mark since the starter; -1: none
  bool has_starter = false;
  for (const auto& part : parts) {
    const int here = combining_class(part.code);
    if (const auto whole =
            has_starter && between < here ? compose(text[starter].code, part.code) : 0) {
      auto& base = text[starter];
      base = {whole, std::min(base.begin, part.begin), std::max(base.end, part.end)};
      continue;
    }
    between = here ? here : -1;
    if (!here) {
      starter = text.size();
      has_starter = true;
    }
    text.push_back(part);
  }
}

bool is_python_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

std::string_view strip(std::string_view text) {
  std::size_t first = text.size(), last = 0;  // where the words begin and end
  for (std::size_t at = 0; at < text.size();) {
    const auto here = character_at(text, at);
    if (!here.valid || !is_python_space(here.code)) {
      if (first == text.size()) first = at;
      last = at + here.length;
    }
    at += here.length;
  }
  return last > first ? text.substr(first, last - first) : std::string_view();
}

}  // namespace llava::text
