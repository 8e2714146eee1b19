// One conversation as the model takes it, still bytes and integers: no torch here.
#pragma once

#include "llava/media/tiles.h"

#include <cstdint>
#include <string>
#include <vector>

namespace llava::input {

inline constexpr std::int64_t kIgnore = -100;      // a label that is not learned
inline constexpr std::int64_t kImageToken = -200;  // an id where a picture's features go

/// One picture or one video of an example: all its tiles, and the rows it takes when spliced.
struct Picture {
  media::TileShape shape;            // of the image; of one frame for a video
  std::int64_t frames = 0;           // > 0: a video of that many frames, one tile each
  std::int64_t rows = 0;             // feature rows
  std::int64_t side = 0;             // pixels across a tile
  std::vector<std::uint8_t> pixels;  // [tiles, 3, side, side]
  std::int64_t tiles() const { return frames > 0 ? frames : shape.tiles(); }
};

struct Example {
  std::string id;                 // of the sample, for messages
  std::vector<std::int64_t> ids;  // kImageToken once for each picture
  std::vector<std::int64_t>
      labels;                     // as long as ids: the id itself where it is learned, else kIgnore
  std::vector<Picture> pictures;  // in the order of their marks

  /// Tokens after splicing.
  std::int64_t num_tokens() const {
    std::int64_t count = static_cast<std::int64_t>(ids.size());
    for (const auto& picture : pictures) count += picture.rows - 1;
    return count;
  }
};

}  // namespace llava::input
