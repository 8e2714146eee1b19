#include "llava/base/plugin.h"

#include "llava/base/check.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <vector>

namespace llava {
namespace {

constexpr const char* kName = "libllava_cuda.so";

struct Plugin {
  void* handle = nullptr;
  PluginState state;
};

std::vector<std::string> candidates() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::vector<std::string> paths;
  if (!error) {
    for (const char* folder : {".", "../lib"}) {
      const auto path = program / folder / kName;
      if (std::filesystem::exists(path, error)) paths.push_back(path.string());
    }
  }
  paths.emplace_back(kName);  // the loader's path
  return paths;
}

Plugin open_once() {
  Plugin plugin;
  for (const auto& path : candidates()) {
    plugin.handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (plugin.handle) {
      plugin.state = {true, path, ""};
      return plugin;
    }
    if (plugin.state.reason.empty()) plugin.state.reason = ::dlerror();
  }
  return plugin;
}

const Plugin& plugin() {
  static const Plugin opened = open_once();
  return opened;
}

}  // namespace

PluginState open_plugin() { return plugin().state; }

void* plugin_symbol(const std::string& name) {
  const auto& opened = plugin();
  expect(opened.state.open, Fault::usage, "the GPU plugin ", kName, " cannot be opened (",
         opened.state.reason,
         "); run scripts/setup.sh --cuda and build again, or use --device cpu");
  void* symbol = ::dlsym(opened.handle, name.c_str());
  expect(symbol != nullptr, Fault::usage, opened.state.path, " has no ", name,
         "; it is from another version: build program and plugin together");
  return symbol;
}

}  // namespace llava
