// safetensors: a JSON header with names, dtypes, shapes and offsets, then the packed bytes.
//
//   bytes 0..8     N, unsigned, little-endian: length of the header
//   bytes 8..8+N   {"__metadata__": {"format": "pt"},
//                   "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
//   bytes 8+N..    tensor data, little-endian, row-major; offsets count from here and cover the
//                  rest of the file exactly once
//
// Source: huggingface/safetensors, README.md and safetensors/src/tensor.rs (0.8). Stricter than it:
// names may not repeat, at most 8 dimensions, 65,536 tensors and a header of 16 MiB.
#pragma once

#include "llava/weights/state_dict.h"

#include <cstdint>
#include <string>

namespace llava::weights {

/// The tensors of a file in the order of their bytes, over the file's mapping; one that is not
/// aligned for its dtype is copied. Nothing is allocated before the header has been checked against
/// the file's length.  Throws Error(data) naming the file, the tensor and what is wrong.
StateDict load_safetensors(const std::string& path);

/// Writes a file byte for byte as the official writer does, with metadata {"format": "pt"}, one
/// tensor in memory at a time. The file appears when complete. Strided tensors are packed.
/// Throws Error(failure) for tensors that share memory (keep one of them), that are not dense, or
/// whose dtype the format lacks.
void save_safetensors(const std::string& path, const StateDict& state);

/// Writes model.safetensors, or shards model-0000x-of-0000N.safetensors and their index once the
/// bytes exceed `max_shard_bytes`, split as huggingface_hub splits them. Files appear only after
/// all have been written; weights of an earlier save under these names are then removed.
void save_safetensors_folder(const std::string& folder, const StateDict& state,
                             std::int64_t max_shard_bytes = 5'000'000'000);

}  // namespace llava::weights
