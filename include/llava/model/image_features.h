// The features of one picture's tiles -> the rows that are spliced into the text. The geometry
// comes from media/tiles. Source: haotian-liu/LLaVA 1.2.2, llava_arch.py; LLaVA-VL/LLaVA-NeXT,
// llava_arch.py; transformers 5.24, modeling_llava_next.py and modeling_llava_next_video.py.
//   N tiles (or frames) of one picture   P0 rows of one tile   P rows of the picture   D width
#pragma once

#include "llava/media/tiles.h"
#include "llava/torch.h"

namespace llava::model {

/// tiles [N, P0, D] -> [P, D], P = media::image_rows. `newline` [D] is needed where config.unpad.
torch::Tensor merge_tiles(const torch::Tensor& tiles, const media::TileShape& shape,
                          const media::MergeConfig& config, const torch::Tensor& newline);

/// Frames [N, side*side, W] -> [N, p*p, W], p = side / stride (bilinear: rounded up).
torch::Tensor pool_frames(const torch::Tensor& frames, const media::MergeConfig& config);

/// Pooled frames [N, p*p, D] -> [P, D], P = media::video_rows.
torch::Tensor merge_frames(const torch::Tensor& frames, const media::MergeConfig& config,
                           const torch::Tensor& newline);

}  // namespace llava::model
