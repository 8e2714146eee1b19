#include "mapped_tensor.h"

#include <sys/mman.h>

#include <cstring>

namespace llava::weights {
namespace {

constexpr std::uintptr_t kPage =
    4096;  // or a multiple: then madvise refuses, which only costs memory

/// Keeps the mapping alive for one tensor.
struct Lease {
  MappedFile file;
  void* begin;
  std::size_t bytes;
};

void end_lease(void* context) {
  auto* lease = static_cast<Lease*>(context);
  const auto begin = reinterpret_cast<std::uintptr_t>(lease->begin);
  const auto first = (begin + kPage - 1) / kPage * kPage;  // pages shared with neighbours stay
  const auto last = (begin + lease->bytes) / kPage * kPage;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  delete lease;
}

}  // namespace

torch::Tensor mapped_tensor(const MappedFile& file, std::size_t offset, torch::IntArrayRef sizes,
                            torch::ScalarType type) {
  const auto options = torch::TensorOptions().dtype(type);
  const auto bytes =
      static_cast<std::size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  if (bytes == 0) return torch::empty(sizes, options);

  char* begin = file.data() + offset;
  if (reinterpret_cast<std::uintptr_t>(begin) % c10::elementSize(type) != 0) {
    const auto copy = torch::empty(sizes, options);
    std::memcpy(copy.data_ptr(), begin, bytes);
    return copy;
  }
  return at::for_blob(begin, sizes)
      .context(new Lease{file, begin, bytes}, end_lease)
      .options(options)
      .make_tensor();
}

}  // namespace llava::weights
