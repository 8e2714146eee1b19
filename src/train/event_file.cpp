#include "event_file.h"

#include "crc32c.h"
#include "llava/base/check.h"
#include "llava/base/files.h"

#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstring>

namespace llava::train {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 128; value >>= 7) bytes += static_cast<char>((value & 127) | 128);
  return bytes + static_cast<char>(value);
}

// Protobuf fields: the key is number * 8 + kind of value.
std::string integer_field(int number, std::int64_t value) {
  return varint(static_cast<std::uint64_t>(number) * 8) + varint(static_cast<std::uint64_t>(value));
}
std::string double_field(int number, double value) {
  return varint(static_cast<std::uint64_t>(number) * 8 + 1) + raw(value);
}
std::string float_field(int number, float value) {
  return varint(static_cast<std::uint64_t>(number) * 8 + 5) + raw(value);
}
std::string bytes_field(int number, const std::string& value) {
  return varint(static_cast<std::uint64_t>(number) * 8 + 2) + varint(value.size()) + value;
}

double seconds_since_epoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string event_at(std::int64_t step) {
  return double_field(1, seconds_since_epoch()) + integer_field(2, step);
}

std::uint32_t masked(std::uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8; }

}  // namespace

EventFile::EventFile(const std::string& folder, std::int64_t first_step) {
  make_folder(folder);
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  path_ = folder + "/events.out.tfevents." +
          std::to_string(std::chrono::duration_cast<std::chrono::microseconds>(now).count()) + "." +
          host + "." + std::to_string(::getpid());
  file_.open(path_, std::ios::binary | std::ios::app);
  expect(file_.is_open(), Fault::usage, path_,
         ": cannot be written; choose an --output_dir you may write to");
  record(event_at(0) + bytes_field(3, "brain.Event:2"));
  constexpr int kStart = 1;  // SessionLog.START: TensorBoard drops what it knows from here on
  record(event_at(first_step) + bytes_field(7, integer_field(1, kStart)));
}

void EventFile::scalars(std::int64_t step,
                        const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, value] : values)
    summary += bytes_field(1, bytes_field(1, tag) + float_field(2, static_cast<float>(value)));
  record(event_at(step) + bytes_field(5, summary));
}

void EventFile::record(std::string_view event) {
  const std::string length = raw(static_cast<std::uint64_t>(event.size()));
  file_ << length << raw(masked(crc32c(length))) << event << raw(masked(crc32c(event)))
        << std::flush;
  expect(
      file_.good(), Fault::failure, path_,
      ": cannot be written; free some space and run it again with --resume_from_checkpoint last");
}

}  // namespace llava::train
