// CRC-32C (Castagnoli): what TensorBoard's files and our checkpoints are checked by.
// Source: RFC 3720, appendix B.4.
#pragma once

#include <cstdint>
#include <string_view>

namespace llava::train {

/// Of `bytes`, going on from the checksum of what stands before them.
std::uint32_t crc32c(std::string_view bytes, std::uint32_t before = 0);

}  // namespace llava::train
