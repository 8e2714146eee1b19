// The one shared object that holds everything needing CUDA or NCCL, opened when a GPU is asked for,
// so that one program serves machines with and without GPUs.
#pragma once

#include <string>

namespace llava {

/// Address of an extern "C" function of libllava_cuda.so, which is looked for beside the program,
/// in ../lib of it, and in the loader's path; opened on first use and never closed. Open it before
/// anything asks torch about CUDA: torch remembers an earlier "no".
/// Throws Error(usage) saying what is missing and the cure.
void* plugin_symbol(const std::string& name);

/// Whether the plugin could be opened, and if not why.
struct PluginState {
  bool open = false;
  std::string path;    // where it was found
  std::string reason;  // why it is not open
};
PluginState open_plugin();

}  // namespace llava
