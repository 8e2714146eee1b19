// Compiled into libllava_cuda.so only: the one file of this folder that includes CUDA headers.
#include "cuda_plugin.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/cuda/nccl.h>

#include <algorithm>
#include <cstdio>

extern "C" void llava_cuda_report(LlavaCudaReport* report) {
  *report = {};
  cudaDriverGetVersion(&report->driver_version);
  cudaRuntimeGetVersion(&report->runtime_version);
  const auto nccl = torch::cuda::nccl::version();  // major << 32 | minor << 16 | patch
  report->nccl_version =
      static_cast<int>((nccl >> 32) * 10000 + ((nccl >> 16) & 0xffff) * 100 + (nccl & 0xffff));
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // "no device" is an answer, not an error to keep
    return;
  }
  report->device_count = std::min(count, 16);
  for (int i = 0; i < report->device_count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    auto& device = report->devices[i];
    std::snprintf(device.name, sizeof device.name, "%.*s", int{sizeof device.name} - 1,
                  properties.name);
    device.bytes = properties.totalGlobalMem;
    device.major = properties.major;
    device.minor = properties.minor;
  }
}

extern "C" std::int64_t llava_cuda_peak_bytes(int device) {
  const auto stats =
      c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
  return stats.allocated_bytes[0].peak;  // index 0: all pools together
}
