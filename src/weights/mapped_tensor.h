// Tensors over the bytes of a mapped file.
#pragma once

#include "llava/base/files.h"
#include "llava/torch.h"

namespace llava::weights {

/// A contiguous tensor over `file`'s bytes from `offset` on, which must lie within the file. Where
/// they are not aligned for `type` they are copied. When the last tensor over the bytes goes, so do
/// their pages: reading a model tensor by tensor never holds the whole file in memory.
torch::Tensor mapped_tensor(const MappedFile& file, std::size_t offset, torch::IntArrayRef sizes,
                            torch::ScalarType type);

}  // namespace llava::weights
