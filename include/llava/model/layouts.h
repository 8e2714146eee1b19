// Names of tensors: any layout's <-> ours. Ours are those of LlavaImpl::named_parameters():
//
//   vision.<x>            <x> as in a CLIP vision tower after `vision_model.`
//   projector.N.<w>       N = 0, 2, ... of an MLP; projector.<w> of a plain Linear
//   llama.<x>             <x> as in a Llama after `model.`
//   lm_head.weight, image_newline
//
// Which layout a name is of need not be known: no name means two things.
#pragma once

#include "llava/model/config.h"

#include <optional>
#include <string>
#include <string_view>

namespace llava::model {

/// Our name of a tensor in any layout: Hugging Face's three, the original's, bare CLIP's, bare
/// Llama's, a projector file's, with or without the prefixes of wrapping modules and PEFT.
/// Nothing for a name that no LLaVA has. Two names of a file may become one: that is for the caller
/// to refuse.
std::optional<std::string> our_name(std::string_view name);

/// Tensors that files hold and no model needs: position ids, old rotary buffers, CLIP's text half.
bool is_ignored(std::string_view name);

/// What one of our tensors is called in a layout's files. Hugging Face's has no place for
/// projectors other than mlp2x_gelu; their names stay ours.
std::string layout_name(const std::string& ours, Layout layout);

/// What transformers' own modules call it (5.24; PEFT writes these).
std::string module_name(const std::string& ours, Layout layout);

}  // namespace llava::model
