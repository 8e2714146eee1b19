#include "llava/base/files.h"

#include "llava/base/check.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace llava {
namespace {

/// A descriptor that closes itself.
class Descriptor {
 public:
  // Not blocking: a pipe of that name must not hang whoever opens it.
  Descriptor(const std::string& path, int flags)
      : value_(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

std::string reason(int error) { return std::generic_category().message(error); }

std::size_t regular_file_size(int descriptor, const std::string& path) {
  expect(descriptor >= 0, Fault::data, path, ": cannot be opened (", reason(errno), ")");
  struct stat status {};
  expect(::fstat(descriptor, &status) == 0, Fault::data, path, ": ", reason(errno));
  expect(S_ISREG(status.st_mode), Fault::data, path, ": is not a regular file");
  return static_cast<std::size_t>(status.st_size);
}

[[noreturn]] void fail_write(const std::string& path, int error) {
  const bool place = error == EACCES || error == EROFS || error == EPERM || error == ENOENT ||
                     error == ENOTDIR || error == EISDIR;
  const char* cure = error == ENOSPC || error == EDQUOT ? "; free some space and run it again"
                     : place                            ? "; choose a folder you may write to"
                                                        : "";
  fail(place ? Fault::usage : Fault::failure, path, ": cannot be written (", reason(error), ")",
       cure);
}

void write_all(int descriptor, const std::string& path, std::string_view bytes, off_t offset) {
  while (!bytes.empty()) {
    const ssize_t count = offset < 0 ? ::write(descriptor, bytes.data(), bytes.size())
                                     : ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_write(path, errno);
    bytes.remove_prefix(static_cast<std::size_t>(count));
    if (offset >= 0) offset += count;
  }
}

}  // namespace

std::string read_file(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  std::string bytes(regular_file_size(file.get(), path), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    expect(count >= 0, Fault::data, path, ": cannot be read (", reason(errno), ")");
    if (count == 0) break;  // the file became shorter while it was read
    done += static_cast<std::size_t>(count);
  }
  bytes.resize(done);
  return bytes;
}

struct MappedFile::Mapping {
  std::string path;
  void* data = nullptr;
  std::size_t size = 0;

  Mapping(std::string name, void* bytes, std::size_t count)
      : path(std::move(name)), data(bytes), size(count) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data) ::munmap(data, size);
  }
};

MappedFile::MappedFile(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  const std::size_t size = regular_file_size(file.get(), path);
  void* data = nullptr;
  if (size > 0) {
    data =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
    expect(data != MAP_FAILED, Fault::data, path, ": cannot be mapped (", reason(errno), ")");
  }
  mapping_ = std::make_shared<Mapping>(path, data, size);
}

const std::string& MappedFile::path() const { return mapping_->path; }
char* MappedFile::data() const { return static_cast<char*>(mapping_->data); }
std::size_t MappedFile::size() const { return mapping_->size; }

namespace {

/// The file that a name leads to: through links, which stay. Throws unless it is a regular one or
/// none yet: a device or pipe must not be replaced by a file.
std::string place_of(const std::string& path) {
  constexpr int kMostLinks = 40;  // as Linux has it
  std::filesystem::path place = path;
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  expect(!std::filesystem::is_other(status), Fault::usage, path,
         ": is no regular file and is not replaced; choose another name");
  for (int i = 0; i < kMostLinks && std::filesystem::is_symlink(place, error); ++i) {
    const auto target = std::filesystem::read_symlink(place, error);
    if (error) fail_write(path, error.value());
    place = target.is_absolute() ? target : place.parent_path() / target;
  }
  return place.string();
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(place_of(path)) {
  static std::atomic<unsigned> serial{0};
  temporary_ = path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(serial++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_write(path_, errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::string_view bytes) { write_all(descriptor_, path_, bytes, -1); }

void AtomicFile::write_at(std::uint64_t offset, std::string_view bytes) {
  write_all(descriptor_, path_, bytes, static_cast<off_t>(offset));
}

void AtomicFile::commit(bool durable) {
  if (durable && ::fsync(descriptor_) != 0)
    fail_write(path_, errno);  // never retried: a page may be lost
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_, errno);
  ::close(descriptor_);
  descriptor_ = -1;
  if (!durable) return;
  const auto folder = std::filesystem::path(path_).parent_path();
  sync_folder(folder.empty() ? "." : folder.string());
}

void write_file(const std::string& path, std::string_view bytes, bool durable) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit(durable);
}

AppendFile::AppendFile(const std::string& path, std::uint64_t keep) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_write(path_, errno);
  struct stat status {};
  const bool is_longer =
      ::fstat(descriptor_, &status) == 0 && static_cast<std::uint64_t>(status.st_size) > keep;
  if (is_longer && ::ftruncate(descriptor_, static_cast<off_t>(keep)) != 0) {
    const int error = errno;
    ::close(descriptor_);
    fail_write(path_, error);
  }
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view bytes) { write_all(descriptor_, path_, bytes, -1); }

void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  expect(!error && std::filesystem::is_directory(path), Fault::usage, path,
         ": the folder cannot be made (",
         error ? error.message() : std::string("a file of that name is in the way"),
         "); choose a folder you may write to");
}

void sync_folder(const std::string& path) {
  const Descriptor folder(path, O_RDONLY | O_DIRECTORY);
  expect(folder.get() >= 0 && ::fsync(folder.get()) == 0, Fault::failure, path,
         ": cannot be flushed to the disk (", reason(errno), ")");
}

std::string path_inside(const std::string& folder, const std::string& name,
                        const std::string& what) {
  const std::filesystem::path relative(name);
  bool inside = !name.empty() && relative.is_relative() && name.find('\0') == std::string::npos;
  for (const auto& part : relative) inside = inside && part != "..";
  expect(inside, Fault::data, what, " \"", name, "\" leads outside ", folder,
         "; only names inside that folder are allowed");
  return (std::filesystem::path(folder) / relative).string();
}

}  // namespace llava
