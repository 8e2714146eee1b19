// What a model folder is, told from its files and keys alone.
#pragma once

#include "llava/base/config.h"

#include <string>

namespace llava::model {

/// {"family", "layout", "template", "dtype", "parts": {"vision", "projector", "text"},
/// "num_parameters", "missing", "unexpected", "misshapen"}.
///   family   llava, llava_next, llava_next_video; clip or llama, mistral, qwen2 for a bare part
///   layout   llava-hf, llava (the original), projector, peft, clip, llama
/// Missing, unexpected and misshapen are tensors under the layout's names. Tensors are mapped, not
/// read.  Throws Error(data) if the folder holds no model at all or a file of it is broken.
Json inspect(const std::string& folder, const std::string& vision_tower = "");

}  // namespace llava::model
