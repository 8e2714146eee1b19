#include "json_reader.h"

#include "llava/base/check.h"

#include <algorithm>
#include <array>

namespace llava::data {
namespace {

constexpr int kMaxDepth = 64;

/// Bytes of a string that stand for themselves and need no look.
constexpr auto kPlain = [] {
  std::array<bool, 256> table{};
  for (int c = 0x20; c < 0x80; ++c) table[static_cast<std::size_t>(c)] = c != '"' && c != '\\';
  return table;
}();

void append_utf8(std::string& out, std::uint32_t code) {
  const auto byte = [&](std::uint32_t bits) { out += static_cast<char>(bits); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6), byte(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12), byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F));
  } else {
    byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 0x3F));
    byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F));
  }
}

/// Bytes of the well-formed UTF-8 character (Unicode, table 3-7) that `text` begins with; 0 if
/// none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto first = byte(0), second = byte(1);
  const auto is_tail = [](unsigned b) { return b >= 0x80 && b <= 0xBF; };
  if (first >= 0xC2 && first <= 0xDF) return is_tail(second) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const unsigned low = first == 0xE0 ? 0xA0 : 0x80, high = first == 0xED ? 0x9F : 0xBF;
    return second >= low && second <= high && is_tail(byte(2)) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const unsigned low = first == 0xF0 ? 0x90 : 0x80, high = first == 0xF4 ? 0x8F : 0xBF;
    return second >= low && second <= high && is_tail(byte(2)) && is_tail(byte(3)) ? 4 : 0;
  }
  return 0;
}

}  // namespace

void JsonReader::fail(const std::string& what) const {
  const auto before = text_.substr(0, at_);
  const auto lines = std::count(before.begin(), before.end(), '\n');
  const auto start = before.rfind('\n');
  const auto column = at_ - (start == before.npos ? 0 : start + 1) + 1;
  llava::fail(Fault::data, what, " (line ", line_ + lines, ", column ", column, ")");
}

char JsonReader::next() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return c;
    ++at_;
  }
  return '\0';
}

char JsonReader::peek() { return next(); }

void JsonReader::take(char wanted) {
  if (next() != wanted) fail(std::string("not valid JSON: expected ") + wanted);
  ++at_;
}

void JsonReader::enter(char open) {
  take(open);
  if (++depth_ > kMaxDepth) fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
}

void JsonReader::leave() {
  ++at_;
  --depth_;
}

bool JsonReader::more(char close) {
  const char c = next();
  if (c == close) return false;
  if (c != ',') fail(std::string("not valid JSON: expected , or ") + close);
  ++at_;
  return true;
}

std::string JsonReader::string() {
  take('"');
  std::string out;
  while (true) {
    const auto begin = at_;
    while (at_ < text_.size() && kPlain[static_cast<unsigned char>(text_[at_])]) ++at_;
    out.append(text_, begin, at_ - begin);
    if (at_ == text_.size()) fail("not valid JSON: a string does not end");
    const char c = text_[at_];
    if (c == '"') break;
    if (c == '\\') {
      escape(out);
    } else {
      utf8(out);
    }
  }
  ++at_;
  return out;
}

void JsonReader::utf8(std::string& out) {
  const auto length = utf8_length(text_.substr(at_, 4));
  if (length == 0) {
    const bool control = static_cast<unsigned char>(text_[at_]) < 0x20;
    fail(control ? "not valid JSON: a control character stands in a string"
                 : "not valid UTF-8; save the file as UTF-8");
  }
  out.append(text_, at_, length);
  at_ += length;
}

void JsonReader::escape(std::string& out) {
  ++at_;
  const char c = at_ < text_.size() ? text_[at_++] : '\0';
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const auto found = kNames.find(c);
  if (c != 'u') {
    if (found == kNames.npos) fail("not valid JSON: unknown escape in a string");
    out += kValues[found];
    return;
  }
  auto code = hex4();
  if (code >= 0xD800 && code <= 0xDBFF && text_.substr(at_, 2) == "\\u") {
    at_ += 2;
    const auto low = hex4();
    const bool pair = low >= 0xDC00 && low <= 0xDFFF;
    code = pair ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : 0xD800;
  }
  if (code >= 0xD800 && code <= 0xDFFF) fail("half of a \\u surrogate pair stands alone");
  append_utf8(out, code);
}

std::uint32_t JsonReader::hex4() {
  std::uint32_t code = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = at_ < text_.size() ? text_[at_++] : '\0';
    const bool digit = c >= '0' && c <= '9';
    const char lower = static_cast<char>(c | 0x20);
    if (!digit && !(lower >= 'a' && lower <= 'f'))
      fail("not valid JSON: \\u needs four hex digits");
    code = code << 4 | static_cast<std::uint32_t>(digit ? c - '0' : lower - 'a' + 10);
  }
  return code;
}

void JsonReader::word(std::string_view wanted) {
  if (text_.substr(at_, wanted.size()) != wanted) fail("not valid JSON: unknown word");
  at_ += wanted.size();
}

void JsonReader::number() {
  const auto digits = [&] {
    const auto begin = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    if (at_ == begin) fail("not valid JSON: expected a value");
    return at_ - begin;
  };
  const auto is = [&](std::string_view any) {
    return at_ < text_.size() && any.find(text_[at_]) != any.npos;
  };
  if (is("-")) ++at_;
  const bool zero = is("0");
  if (digits() > 1 && zero) fail("not valid JSON: a number begins with 0");
  if (is(".")) ++at_, digits();
  if (is("eE")) {
    ++at_;
    if (is("+-")) ++at_;
    digits();
  }
}

std::string_view JsonReader::skip() {
  const char kind = next();
  const auto begin = at_;
  if (kind == '{') {
    object([&](const std::string&) { skip(); });
  } else if (kind == '[') {
    array([&] { skip(); });
  } else if (kind == '"') {
    string();
  } else if (kind == 't' || kind == 'f' || kind == 'n') {
    word(kind == 't' ? "true" : kind == 'f' ? "false" : "null");
  } else {
    number();
  }
  return text_.substr(begin, at_ - begin);
}

void JsonReader::end() {
  if (next() != '\0' || at_ < text_.size()) fail("not valid JSON: there is more after the value");
}

}  // namespace llava::data
