// Reading whole files, mapping large ones, and writing so that a reader sees the old file or the
// new one, never half of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace llava {

/// The bytes of a regular file.  Throws Error(data) naming the path and the reason.
std::string read_file(const std::string& path);

/// A regular file mapped into memory, private and writable in memory only: a write to the mapping
/// never reaches the file. Copies share the mapping, which lives as long as the last of them.
class MappedFile {
 public:
  /// Throws Error(data) if the path is missing, unreadable or not a regular file.
  explicit MappedFile(const std::string& path);

  const std::string& path() const;
  char* data() const;        // nullptr for an empty file
  std::size_t size() const;  // bytes

 private:
  struct Mapping;
  std::shared_ptr<Mapping> mapping_;
};

/// A file that appears under its name only when complete: bytes go to a temporary name in the same
/// folder; commit() flushes them to the disk, renames, and flushes the folder. Destroyed without
/// commit(), nothing is left. Throws Error(usage) if the place cannot be written, Error(failure)
/// if the disk is full or fails; the previous file of that name is then untouched.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::string_view bytes);
  void write_at(std::uint64_t offset, std::string_view bytes);
  /// `durable`: flush to the disk before and after the rename, so that a crash cannot lose it.
  void commit(bool durable = true);

 private:
  std::string path_, temporary_;
  int descriptor_ = -1;
};

/// AtomicFile in one call.
void write_file(const std::string& path, std::string_view bytes, bool durable = true);

/// A file that grows at its end. Each append is handed to the system whole, so that a kill tears at
/// most the last line. Throws as AtomicFile.
class AppendFile {
 public:
  /// Opens or makes the file and cuts what lies behind its first `keep` bytes.
  AppendFile(const std::string& path, std::uint64_t keep);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  void append(std::string_view bytes);

 private:
  std::string path_;
  int descriptor_ = -1;
};

/// Makes a folder and those above it.  Throws Error(usage) naming the part that could not be made.
void make_folder(const std::string& path);

/// Flushes a folder's entries (new names, renames) to the disk.  Throws Error(failure).
void sync_folder(const std::string& path);

/// Joins a folder and a name that came from a file or a user, refusing names that lead outside the
/// folder (absolute, or with ".." in them).  Throws Error(data); `what` says whose name it is.
std::string path_inside(const std::string& folder, const std::string& name,
                        const std::string& what);

}  // namespace llava
