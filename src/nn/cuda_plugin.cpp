// Compiled into libllava_cuda.so only: the one file of this folder that includes CUDA headers.
#include "cuda_plugin.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/cuda/nccl.h>

#include <algorithm>
#include <cstdio>
#include <memory>

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

extern "C" void* llava_cuda_record(int device, LlavaCudaWork work, void* data) {
  const c10::cuda::CUDAGuard on_device(static_cast<c10::DeviceIndex>(device));
  C10_CUDA_CHECK(cudaDeviceSynchronize());  // the recording's stream is another one
  const auto stream =
      c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device));
  const c10::cuda::CUDAStreamGuard on_stream(stream);
  work(data);  // libraries set themselves up, which cannot be recorded
  stream.synchronize();
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  work(data);
  graph->capture_end();
  return graph.release();
}

extern "C" void llava_cuda_replay(void* graph) {
  static_cast<at::cuda::CUDAGraph*>(graph)->replay();
}

extern "C" void llava_cuda_forget(void* graph) { delete static_cast<at::cuda::CUDAGraph*>(graph); }
