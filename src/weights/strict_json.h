// A walk over JSON from a hostile file that builds nothing: the caller sees one value after the
// other and keeps what it wants, so memory is what the caller keeps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace llava::weights {

/// One value of the text. Containers are seen when they begin; their content follows.
struct JsonValue {
  enum class Kind { object, array, string, number, null, other };

  Kind kind = Kind::other;
  const std::vector<std::string>& keys;  // of the objects around it, outermost first
  bool in_array = false;                 // an element of an array, which is at `keys`
  std::uint64_t number = 0;              // Kind::number: a whole number written with digits alone
  std::string_view text;                 // Kind::string
};

/// Calls `visit` for each value.  Throws Error(data) beginning with `where` for anything but one
/// well-formed value between white space: byte-order marks, NUL bytes, invalid UTF-8, a key that an
/// object has twice, more than 4 levels, 65,537 keys in an object, or 64 KiB in a string.
void walk_json(std::string_view text, const std::string& where,
               const std::function<void(const JsonValue&)>& visit);

bool is_utf8(std::string_view text);

}  // namespace llava::weights
