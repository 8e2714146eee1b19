#include "tensor_bytes.h"

#include <sys/mman.h>

#include <cstring>

namespace llava::weights {
namespace {

// Where pages are larger, madvise refuses some of these ranges, which costs memory alone.
constexpr std::uintptr_t kPage = 4096;

/// Gives back the pages that lie wholly in a range; those shared with neighbours stay.
void drop_pages(char* data, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const auto first = (begin + kPage - 1) / kPage * kPage;
  const auto last = (begin + size) / kPage * kPage;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

/// A tensor's share of a mapping.
struct Lease {
  MappedFile file;
  char* data;
  std::size_t size;

  static void end(void* lease) {
    const std::unique_ptr<Lease> self(static_cast<Lease*>(lease));
    drop_pages(self->data, self->size);
  }
};

torch::Tensor mapped(const MappedFile& file, std::size_t offset, torch::IntArrayRef sizes,
                     torch::ScalarType type, std::size_t alignment) {
  const auto options = torch::TensorOptions().dtype(type);
  const auto size =
      static_cast<std::size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  if (size == 0) return torch::empty(sizes, options);

  char* data = file.data() + offset;
  if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
    const auto copy = torch::empty(sizes, options);
    std::memcpy(copy.data_ptr(), data, size);
    drop_pages(data, size);
    return copy;
  }
  return at::for_blob(data, sizes)
      .context(new Lease{file, data, size}, &Lease::end)
      .options(options)
      .make_tensor();
}

}  // namespace

torch::Tensor mapped_tensor(const MappedFile& file, std::size_t offset, torch::IntArrayRef sizes,
                            torch::ScalarType type) {
  return mapped(file, offset, sizes, type, c10::elementSize(type));
}

torch::Tensor mapped_storage(const MappedFile& file, std::size_t offset, std::size_t size) {
  constexpr std::size_t kWidestElement = 16;  // complex128
  return mapped(file, offset, {static_cast<std::int64_t>(size)}, torch::kUInt8, kWidestElement);
}

torch::Tensor packed(const torch::Tensor& tensor) {
  return tensor.detach().cpu().contiguous().resolve_conj().resolve_neg();
}

std::string_view bytes_of(const torch::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace llava::weights
