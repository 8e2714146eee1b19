// What --data_path means: a list of files with a sampling strategy each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llava::data {

/// One file of samples and how many of them are taken.
struct Source {
  std::string path;
  std::string strategy = "all";  // all, first:N, end:N, random:N; N a count or "12%"
  std::string where;             // who asks for it, for messages
};

/// Expands commas, base{a,b}.json and mixture files, in order.  Throws Error(data) naming file and
/// line.
std::vector<Source> list_sources(const std::string& data_path);

/// The samples, by number from 0, that a strategy takes of `count`, in order.
/// Throws Error(data) naming `where` and the known strategies.
/// Source: LLaVA-VL/LLaVA-NeXT, train.py (percentages round up; random ones are shuffled).
std::vector<std::int64_t> chosen(const std::string& strategy, std::int64_t count,
                                 std::uint64_t seed, const std::string& where);

}  // namespace llava::data
