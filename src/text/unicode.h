// UTF-8 and the character classes that tokenizers ask about.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llava::text {

inline constexpr char32_t kReplacement = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

/// What stands at a place in a text.
struct Character {
  char32_t code = kReplacement;  // U+FFFD unless valid
  std::size_t length = 1;        // bytes to move on by; 1 for a bad byte
  bool valid = false;
  bool cut = false;  // not valid, but more bytes after the end of the text could make it so
};

/// The character at byte `at`, which must be inside the text.
Character character_at(std::string_view text, std::size_t at);

void append_utf8(std::string& text, char32_t code);

/// The classes that pre-tokenizers split by: \p{L}, \p{N}, \s and the rest.
enum class CharacterClass : std::uint8_t { letter, number, space, other };
CharacterClass class_of(char32_t code);

/// A character and the bytes it came from.
struct SourceCharacter {
  char32_t code = 0;
  std::uint32_t begin = 0, end = 0;
};

/// Normalization form C. A composed character comes from the bytes of all its parts.
/// Source: Unicode Standard Annex 15.
void normalize_nfc(std::vector<SourceCharacter>& text);

/// White space as Python's str.strip() sees it.
bool is_python_space(char32_t code);

/// `text` without white space at both ends, as Python's str.strip().
std::string_view strip(std::string_view text);

}  // namespace llava::text
