// Renaming tensors by tables of prefixes: a layout is data.
#pragma once

#include "llava/weights/state_dict.h"

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace llava::weights {

/// Names that begin with `from` begin with `to` instead.
struct Rename {
  std::string_view from, to;
};

/// `name` after the first rule whose `from` it begins with; nothing when there is none.
std::optional<std::string> renamed(std::string_view name, std::span<const Rename> rules);

/// The same with the rules read from right to left.
std::optional<std::string> renamed_back(std::string_view name, std::span<const Rename> rules);

}  // namespace llava::weights
