// The tensors of the goldens and the bytes of tensors.
#pragma once

#include "llava/torch.h"

#include <string>

namespace llava::weights {

/// What scripts/make_goldens_weights.py calls counting(): bytes 0, 1, 2 ... modulo 251 (2 for bool).
inline torch::Tensor counting(std::int64_t count, torch::ScalarType type,
                              torch::IntArrayRef sizes) {
  const auto bytes = count * static_cast<std::int64_t>(c10::elementSize(type));
  const auto data = torch::arange(bytes, torch::kInt64).remainder(type == torch::kBool ? 2 : 251);
  return data.to(torch::kUInt8).view(type).reshape(sizes);
}

inline std::string text_of(const torch::Tensor& contiguous) {
  return {static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes()};
}

}  // namespace llava::weights
