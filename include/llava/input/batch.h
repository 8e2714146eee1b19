// Examples laid end to end: flat tensors and where each begins. No padding, no mask.
//   B rows   T0 tokens of all rows before splicing   N tiles of all pictures   S pixels a tile side
#pragma once

#include "llava/input/example.h"
#include "llava/torch.h"

namespace llava::input {

/// One picture of a batch: which tiles are its own and how many rows it becomes.
struct PictureSpan {
  std::int64_t first_tile = 0;
  std::int64_t slot = 0;  // index into ids where its kImageToken stands
  media::TileShape shape;
  std::int64_t frames = 0;
  std::int64_t rows = 0;
};

struct Batch {
  torch::Tensor ids;                  // [T0] int64; kImageToken where a picture goes
  torch::Tensor labels;               // [T0] int64
  std::vector<std::int64_t> starts;   // [B+1] first token of each row, before splicing
  torch::Tensor tiles;                // [N,3,S,S] uint8; undefined when there are no pictures
  std::vector<PictureSpan> pictures;  // in the order of their slots
  std::vector<std::string> example_ids;

  std::int64_t rows() const { return static_cast<std::int64_t>(starts.size()) - 1; }

  /// T: tokens after splicing.
  std::int64_t num_tokens() const;

  /// Labels that are learned: not kIgnore and not first in a row. Labels must be on the CPU.
  std::int64_t num_learned() const;

  /// The same batch there; from pinned memory the copy to a GPU does not wait.
  Batch to(torch::Device device) const;
};

/// `pinned` takes memory that a GPU can read by itself.  Throws Error(data) if tiles differ in
/// size.
Batch collate(const std::vector<Example>& examples, bool pinned = false);

}  // namespace llava::input
