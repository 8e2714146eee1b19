#include "json_stream.h"

#include "llava/base/check.h"
#include "random.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

namespace llava::data {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

constexpr std::size_t kBufferBytes = 64 << 10;

/// Bytes that matter inside a string, and those that matter outside one.
constexpr auto kInString = [] {
  std::array<bool, 256> table{};
  for (const unsigned char c : {'"', '\\', '\n'}) table[c] = true;
  return table;
}();
constexpr auto kOutside = [] {
  std::array<bool, 256> table{};
  for (const unsigned char c : {'"', '{', '}', '[', ']', '\n'}) table[c] = true;
  return table;
}();

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/// A file read forward through a buffer, with the line it has come to.
class Cursor {
 public:
  explicit Cursor(const ReadFile& file) : file_(file), buffer_(kBufferBytes) { fill(); }

  bool at_end() { return next_ == end_ && !fill(); }
  char peek() const { return *next_; }  // not at the end
  void skip() { line_ += *next_++ == '\n'; }

  /// Goes on to the next byte that `table` marks. Returns false at the end of the file.
  bool skip_to(const std::array<bool, 256>& table) {
    do {
      while (next_ != end_ && !table[static_cast<unsigned char>(*next_)]) ++next_;
    } while (next_ == end_ && fill());
    return next_ != end_;
  }

  bool skip_spaces() {
    while (!at_end() && is_space(peek())) skip();
    return next_ != end_;
  }

  std::uint64_t offset() const {
    return begins_ + static_cast<std::uint64_t>(next_ - buffer_.data());
  }
  std::uint32_t line() const { return line_; }
  std::uint64_t hash() const { return hash_; }
  std::string where() const { return file_.path() + ":" + std::to_string(line_); }

 private:
  bool fill() {
    begins_ += filled_;
    filled_ = file_.read(begins_, buffer_.data(), buffer_.size());
    next_ = buffer_.data();
    end_ = next_ + filled_;
    if (filled_ > 0) hash_ = mixed(hash_, {next_, filled_});
    return filled_ > 0;
  }

  const ReadFile& file_;
  std::vector<char> buffer_;
  std::uint64_t begins_ = 0;  // offset of the buffer's first byte
  std::size_t filled_ = 0;
  const char *next_ = nullptr, *end_ = nullptr;
  std::uint32_t line_ = 1;
  std::uint64_t hash_ = 0;
};

/// Ends a sample that began at `begin`, checking its size.
Extent extent(const Cursor& cursor, const Extent& begin, const ReadFile& file) {
  const auto size = cursor.offset() - begin.offset;
  expect(size <= kMaxSampleBytes, Fault::data, file.path(), ":", begin.line,
         ": the sample that begins here is longer than ", kMaxSampleBytes >> 20,
         " MiB; is a quote or bracket missing?");
  return {begin.offset, static_cast<std::uint32_t>(size), begin.line};
}

/// Goes past a string whose opening quote is next. Returns false at the end of the file.
bool skip_string(Cursor& cursor) {
  cursor.skip();
  while (cursor.skip_to(kInString)) {
    const char c = cursor.peek();
    cursor.skip();
    if (c == '"') return true;
    if (c == '\\' && !cursor.at_end()) cursor.skip();
  }
  return false;
}

/// Goes past the object whose brace is next and returns its extent.
Extent skip_object(Cursor& cursor, const ReadFile& file) {
  const Extent begin{cursor.offset(), 0, cursor.line()};
  std::int64_t depth = 0;
  bool whole = true;
  while (whole && (whole = cursor.skip_to(kOutside))) {
    const char c = cursor.peek();
    if (c == '"') {
      whole = skip_string(cursor);
    } else {
      cursor.skip();
      depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
      if (depth == 0) return extent(cursor, begin, file);
    }
    if (cursor.offset() - begin.offset > kMaxSampleBytes) extent(cursor, begin, file);
  }
  fail(Fault::data, file.path(), ":", begin.line,
       ": the sample that begins here does not end before the file does; is the file cut short, or "
       "a "
       "quote or bracket missing?");
}

/// [ {...}, {...} ]
void find_in_list(Cursor& cursor, const ReadFile& file, std::vector<Extent>& found) {
  cursor.skip();
  const auto next = [&](const char* wanted) {
    const bool more = cursor.skip_spaces();
    expect(more, Fault::data, cursor.where(), ": expected ", wanted,
           ", found the end of the file; is it cut short?");
    return cursor.peek();
  };
  if (next("a sample or ]") != ']') {
    while (true) {
      const char c = next("a sample");
      expect(c == '{', Fault::data, cursor.where(), ": expected { of a sample, found \"", c,
             "\"; a training set is a list of objects");
      found.push_back(skip_object(cursor, file));
      const char after = next(", or ]");
      if (after == ']') break;
      expect(after == ',', Fault::data, cursor.where(), ": expected , or ] after sample ",
             found.size(), ", found \"", after, "\"");
      cursor.skip();
    }
  }
  cursor.skip();
  const bool more = cursor.skip_spaces();
  expect(!more, Fault::data, cursor.where(),
         ": there is more after the list's ]; a file holds one list");
}

/// One sample a line; empty lines are allowed.
void find_in_lines(Cursor& cursor, const ReadFile& file, std::vector<Extent>& found) {
  static constexpr auto kNewline = [] {
    std::array<bool, 256> table{};
    table['\n'] = true;
    return table;
  }();
  while (cursor.skip_spaces()) {
    const Extent begin{cursor.offset(), 0, cursor.line()};
    expect(cursor.peek() == '{', Fault::data, cursor.where(),
           ": expected one sample a line, found \"", cursor.peek(), "\"");
    cursor.skip_to(kNewline);
    found.push_back(extent(cursor, begin, file));
  }
}

}  // namespace

ReadFile::ReadFile(const std::string& path) : path_(path) {
  // Non-blocking, so that a named pipe is refused instead of waited for.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  expect(descriptor_ >= 0, Fault::data, path, ": cannot be opened (", reason(errno), ")");
  struct stat status {};
  const bool regular = ::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular) ::close(descriptor_);
  expect(regular, Fault::data, path, ": is not a regular file");
  size_ = static_cast<std::uint64_t>(status.st_size);
}

ReadFile::~ReadFile() { ::close(descriptor_); }

std::size_t ReadFile::read(std::uint64_t offset, char* bytes, std::size_t count) const {
  std::size_t done = 0;
  while (done < count) {
    const auto got =
        ::pread(descriptor_, bytes + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    expect(got >= 0, Fault::data, path_, ": cannot be read (", reason(errno), ")");
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

std::vector<Extent> find_samples(const ReadFile& file, std::uint64_t& hash) {
  std::vector<Extent> found;
  Cursor cursor(file);
  for (const char byte : {'\xEF', '\xBB', '\xBF'})  // a byte-order mark
    if (!cursor.at_end() && cursor.peek() == byte) cursor.skip();
  expect(cursor.skip_spaces(), Fault::data, file.path(), ": is empty; expected a list of samples");
  const char first = cursor.peek();
  expect(first == '[' || first == '{', Fault::data, cursor.where(),
         ": expected a JSON list of samples or one sample a line; is this a JSON file?");
  if (first == '[') {
    find_in_list(cursor, file, found);
  } else {
    find_in_lines(cursor, file, found);
  }
  hash = cursor.hash();
  return found;
}

}  // namespace llava::data
