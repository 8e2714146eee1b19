// Finds the samples of a JSON list, or of a file with one sample a line, in one pass over a small
// buffer. What is inside a sample is for the JSON parser; here only its extent matters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llava::data {

/// A regular file open for reading at any place, by any number of threads.
class ReadFile {
 public:
  /// Throws Error(data) if the path is missing, unreadable or not a regular file.
  explicit ReadFile(const std::string& path);
  ~ReadFile();
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }

  /// Reads up to `count` bytes at `offset`; fewer only at the end of the file.
  std::size_t read(std::uint64_t offset, char* bytes, std::size_t count) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// Where one sample's text lies in its file; the line counts from 1.
struct Extent {
  std::uint64_t offset = 0;
  std::uint32_t size = 0, line = 0;
};

/// The longest sample taken, bytes.
inline constexpr std::uint64_t kMaxSampleBytes = 16 << 20;

/// All samples of a file in order, and a hash of all its bytes in `hash`.
/// Throws Error(data) naming file and line where the outline is broken.
std::vector<Extent> find_samples(const ReadFile& file, std::uint64_t& hash);

}  // namespace llava::data
