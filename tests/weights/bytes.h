// The tensors of the goldens and the bytes of tensors.
#pragma once

#include "llava/torch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace llava::weights {

/// What scripts/make_goldens_weights.py calls counting(): bytes 0, 1, 2 ... modulo 251 (2 for
/// bool).
inline torch::Tensor counting(std::int64_t count, torch::ScalarType type,
                              torch::IntArrayRef sizes) {
  const auto bytes = count * static_cast<std::int64_t>(c10::elementSize(type));
  const auto data = torch::arange(bytes, torch::kInt64).remainder(type == torch::kBool ? 2 : 251);
  return data.to(torch::kUInt8).view(type).reshape(sizes);
}

inline std::string text_of(const torch::Tensor& contiguous) {
  return {static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes()};
}

/// A file in memory, for thousands of hostile files a second.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("llava-test", 0)) {
    if (descriptor_ < 0) throw std::runtime_error("no file in memory");
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

  /// Replaces the content and returns the path.
  std::string hold(std::string_view bytes) const {
    const auto size = static_cast<ssize_t>(bytes.size());
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) != size)
      throw std::runtime_error("cannot write a file in memory");
    return path();
  }

 private:
  int descriptor_;
};

}  // namespace llava::weights
