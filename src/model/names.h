// Names of tensors: any layout's <-> ours.
#pragma once

#include "llava/model/config.h"

#include <optional>
#include <string>
#include <string_view>

namespace llava::model {

/// Our name of a tensor in any layout: Hugging Face's three, the original's, bare CLIP's, bare
/// Llama's, a projector file's, PEFT's. Nothing for a name that no LLaVA has.
std::optional<std::string> our_name(std::string_view name);

/// Tensors that files hold and no model needs: position ids, old rotary buffers, CLIP's text half.
bool is_ignored(std::string_view name);

/// What one of our tensors is called in a layout's files.
std::string layout_name(const std::string& ours, Layout layout);

/// What transformers' own modules call it (5.24; PEFT writes these).
std::string module_name(const std::string& ours, Layout layout);

}  // namespace llava::model
