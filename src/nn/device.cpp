#include "llava/nn/device.h"

#include "cuda_plugin.h"
#include "llava/base/check.h"
#include "llava/base/config.h"
#include "llava/base/plugin.h"

#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <sys/resource.h>

#include <thread>

namespace llava::nn {
namespace {

bool has_driver() {
  void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver) ::dlclose(driver);
  return driver != nullptr;
}

int gpu_count() {
  const auto report = cuda_report(/*open_anyway=*/false);
  return static_cast<int>(report.devices.size());
}

}  // namespace

torch::Device choose_device(const std::string& name) {
  if (name == "cpu") return torch::kCPU;
  if (name == "auto")
    return gpu_count() > 0 ? torch::Device(torch::kCUDA, 0) : torch::Device(torch::kCPU);
  const bool numbered = name.rfind("cuda:", 0) == 0;
  expect(name == "cuda" || numbered, Fault::usage,
         "--device: expected auto, cpu or cuda[:N], found \"", name, "\"");
  std::int64_t index = 0;
  if (numbered) parse_value(name.substr(5), "--device cuda:N", index);
  expect(has_driver(), Fault::usage, "--device ", name,
         ": no NVIDIA driver was found (libcuda.so.1); use --device cpu");
  plugin_symbol("llava_cuda_report");  // throws with the cure when the plugin is missing
  const int count = gpu_count();
  expect(index >= 0 && index < count, Fault::usage, "--device ", name, ": this machine has ", count,
         " GPU(s), numbered from 0");
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

std::optional<torch::ScalarType> choose_dtype(const std::string& name) {
  if (name == "auto") return std::nullopt;
  if (name == "float32") return torch::kFloat32;
  if (name == "bfloat16") return torch::kBFloat16;
  if (name == "float16") return torch::kFloat16;
  fail(Fault::usage, "--dtype: expected auto, float32, bfloat16 or float16, found \"", name, "\"",
       suggestion(name, {"float32", "bfloat16", "float16"}));
}

void set_threads(std::int64_t threads) {
  expect(threads >= 0 && threads <= 4096, Fault::usage, "--threads: expected 0 to 4096, found ",
         threads);
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
}

CudaReport cuda_report(bool open_anyway) {
  CudaReport report;
  report.driver_found = has_driver();
  if (!report.driver_found && !open_anyway) return report;
  const auto state = open_plugin();
  report.plugin_open = state.open;
  report.plugin_problem = state.reason;
  if (!state.open) return report;
  LlavaCudaReport raw;
  reinterpret_cast<LlavaCudaReportFunction>(plugin_symbol("llava_cuda_report"))(&raw);
  report.driver_version = raw.driver_version;
  report.runtime_version = raw.runtime_version;
  report.nccl_version = raw.nccl_version;
  for (int i = 0; i < raw.device_count; ++i) {
    const auto& device = raw.devices[i];
    report.devices.push_back({device.name, device.bytes, device.major, device.minor});
  }
  return report;
}

std::int64_t peak_memory_bytes(torch::Device device) {
  if (device.is_cuda()) {
    const auto peak =
        reinterpret_cast<LlavaCudaPeakBytesFunction>(plugin_symbol("llava_cuda_peak_bytes"));
    return peak(device.index());
  }
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;  // Linux counts KiB
}

}  // namespace llava::nn
