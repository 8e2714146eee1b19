// Tensors over the bytes of a mapped file, and the bytes of tensors.
#pragma once

#include "llava/base/files.h"
#include "llava/torch.h"

#include <string_view>

namespace llava::weights {

/// A contiguous tensor over `file`'s bytes from `offset` on, which must lie within the file. Where
/// they are not aligned for `type` they are copied. When the last tensor over the bytes goes, so do
/// their pages: reading a model tensor by tensor never holds the whole file in memory.
torch::Tensor mapped_tensor(const MappedFile& file, std::size_t offset, torch::IntArrayRef sizes,
                            torch::ScalarType type);

/// The same for bytes that tensors of any dtype will be views of: [size] uint8.
torch::Tensor mapped_storage(const MappedFile& file, std::size_t offset, std::size_t size);

/// The tensor on the CPU and packed in row-major order: itself, or a copy where it is not so.
torch::Tensor packed(const torch::Tensor& tensor);

/// The bytes of a packed tensor.
std::string_view bytes_of(const torch::Tensor& tensor);

}  // namespace llava::weights
