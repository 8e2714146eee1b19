// What libllava_cuda.so offers the program: plain C functions and plain structs, so that the
// program compiles and links without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct LlavaCudaDevice {
  char name[128];
  std::size_t bytes;
  int major, minor;
};

struct LlavaCudaReport {
  int driver_version, runtime_version, nccl_version, device_count;
  LlavaCudaDevice devices[16];
};

using LlavaCudaReportFunction = void (*)(LlavaCudaReport*);       // "llava_cuda_report"
using LlavaCudaPeakBytesFunction = std::int64_t (*)(int device);  // "llava_cuda_peak_bytes"

// Records what work(data) does on a device, after doing it once, as a graph that can be replayed on
// the current stream. Throws what work or CUDA throws.
using LlavaCudaWork = void (*)(void* data);
using LlavaCudaRecordFunction = void* (*)(int device, LlavaCudaWork work, void* data);
using LlavaCudaGraphFunction = void (*)(void* graph);  // "llava_cuda_replay", "..._forget"

}  // extern "C"
