#include "llava/input/batch.h"

#include "llava/base/check.h"

#include <algorithm>
#include <cassert>
#include <numeric>

namespace llava::input {
namespace {

constexpr auto kLong = torch::kInt64;

/// Where a batch's pixels begin and how many tiles it has in all.
std::int64_t count_tiles(const std::vector<Example>& examples) {
  std::int64_t tiles = 0;
  for (const auto& example : examples)
    for (const auto& picture : example.pictures) tiles += picture.tiles();
  return tiles;
}

/// Pixels across a tile, the same for all pictures; 0 without pictures.
std::int64_t common_side(const std::vector<Example>& examples) {
  std::int64_t side = 0;
  for (const auto& example : examples) {
    for (const auto& picture : example.pictures) {
      if (side == 0) side = picture.side;
      expect(picture.side == side, Fault::data, "sample \"", example.id, "\" has tiles of ",
             picture.side, " pixels in a batch of ", side, "; use one preprocessing for all");
      const auto bytes = picture.tiles() * 3 * side * side;
      expect(static_cast<std::int64_t>(picture.pixels.size()) == bytes, Fault::data, "sample \"",
             example.id, "\" has a picture of ", picture.pixels.size(), " bytes instead of ", bytes,
             "; make pictures by Encoder::picture");
    }
  }
  return side;
}

}  // namespace

Batch collate(const std::vector<Example>& examples, bool pinned) {
  Batch batch;
  batch.starts.push_back(0);
  for (const auto& example : examples) {
    assert(example.ids.size() == example.labels.size());
    batch.starts.push_back(batch.starts.back() + static_cast<std::int64_t>(example.ids.size()));
    batch.example_ids.push_back(example.id);
  }
  const auto T0 = batch.starts.back(), N = count_tiles(examples), S = common_side(examples);
  const auto options = torch::TensorOptions().pinned_memory(pinned);
  batch.ids = torch::empty({T0}, options.dtype(kLong));
  batch.labels = torch::empty({T0}, options.dtype(kLong));
  if (N > 0) batch.tiles = torch::empty({N, 3, S, S}, options.dtype(torch::kUInt8));

  auto* ids = batch.ids.mutable_data_ptr<std::int64_t>();
  auto* labels = batch.labels.mutable_data_ptr<std::int64_t>();
  auto* pixels = N > 0 ? batch.tiles.mutable_data_ptr<std::uint8_t>() : nullptr;
  std::int64_t tile = 0;
  for (std::size_t row = 0; row < examples.size(); ++row) {
    const auto& example = examples[row];
    const auto start = batch.starts[row];
    std::copy(example.ids.begin(), example.ids.end(), ids + start);
    std::copy(example.labels.begin(), example.labels.end(), labels + start);
    auto slot = example.ids.begin();
    for (const auto& picture : example.pictures) {
      slot = std::find(slot, example.ids.end(), kImageToken);
      expect(slot != example.ids.end(), Fault::data, "sample \"", example.id,
             "\" has more pictures than marks; give one picture for each mark");
      batch.pictures.push_back({.first_tile = tile,
                                .slot = start + (slot++ - example.ids.begin()),
                                .shape = picture.shape,
                                .frames = picture.frames,
                                .rows = picture.rows});
      pixels = std::copy(picture.pixels.begin(), picture.pixels.end(), pixels);
      tile += picture.tiles();
    }
  }
  return batch;
}

std::int64_t Batch::num_tokens() const {
  return std::accumulate(
      pictures.begin(), pictures.end(), starts.back(),
      [](std::int64_t sum, const PictureSpan& picture) { return sum + picture.rows - 1; });
}

std::int64_t Batch::num_learned() const {
  const auto* all = labels.const_data_ptr<std::int64_t>();
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < rows(); ++row)
    for (auto i = starts[row] + 1; i < starts[row + 1]; ++i) count += all[i] != kIgnore;
  return count;
}

Batch Batch::to(torch::Device device) const {
  Batch there = *this;
  there.ids = ids.to(device, /*non_blocking=*/true);
  there.labels = labels.to(device, /*non_blocking=*/true);
  if (tiles.defined()) there.tiles = tiles.to(device, /*non_blocking=*/true);
  return there;
}

}  // namespace llava::input
