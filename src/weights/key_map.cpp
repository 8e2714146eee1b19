#include "llava/weights/key_map.h"

namespace llava::weights {
namespace {

std::string replaced(std::string_view name, std::string_view from, std::string_view to) {
  return std::string(to).append(name.substr(from.size()));
}

}  // namespace

std::optional<std::string> renamed(std::string_view name, std::span<const Rename> rules) {
  for (const auto& rule : rules)
    if (name.starts_with(rule.from)) return replaced(name, rule.from, rule.to);
  return std::nullopt;
}

std::optional<std::string> renamed_back(std::string_view name, std::span<const Rename> rules) {
  for (const auto& rule : rules)
    if (name.starts_with(rule.to)) return replaced(name, rule.to, rule.from);
  return std::nullopt;
}

}  // namespace llava::weights
