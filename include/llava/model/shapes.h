// How a new model cuts pictures.
#pragma once

#include "llava/model/config.h"

namespace llava::model {

/// Anyres grids in pixels, as TilingConfig has them: those of LLaVA-1.6's config.json.
using Grids = std::vector<std::pair<std::int64_t, std::int64_t>>;
Grids default_grids(std::int64_t tile);

/// Makes a model of this aspect: anyres brings default_grids of its tiles, spatial merging and the
/// newline vector; the others have none of them.
void use_aspect(LlavaConfig& config, media::Aspect aspect);

}  // namespace llava::model
