// How much a process's memory grew at its highest while something ran.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace llava::support {

/// A line of /proc/self/status in bytes.  Source: proc(5).
inline std::int64_t memory_status(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(name + ":", 0) == 0) return std::atoll(line.c_str() + name.size() + 1) * 1024;
  return 0;
}

/// Bytes by which the resident set grew at its highest during `work`.
template <class Work>
std::int64_t peak_growth(const Work& work) {
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak begins anew
  const auto before = memory_status("VmRSS");
  work();
  return memory_status("VmHWM") - before;
}

}  // namespace llava::support
