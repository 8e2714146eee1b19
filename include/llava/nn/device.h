// Where tensors live and how wide they are, from the names people type.
#pragma once

#include "llava/torch.h"

#include <optional>
#include <string>
#include <vector>

namespace llava::nn {

/// "cpu", "cuda", "cuda:N", or "auto": the first GPU where there is one, else the CPU. Opens the
/// GPU plugin when a GPU may be used.  Throws Error(usage) saying what is missing.
torch::Device choose_device(const std::string& name);

/// "float32", "bfloat16", "float16"; nothing for "auto".  Throws Error(usage).
std::optional<torch::ScalarType> choose_dtype(const std::string& name);

/// Sets the CPU threads of this process; 0: as many as there are cores (or OMP_NUM_THREADS says).
void set_threads(std::int64_t threads);

/// What the GPU plugin tells of CUDA.
struct CudaReport {
  bool driver_found = false;  // libcuda.so.1 can be opened
  bool plugin_open = false;
  std::string plugin_problem;                                     // why not
  int driver_version = 0, runtime_version = 0, nccl_version = 0;  // 13000 is 13.0; 22809 is 2.28.9
  struct Device {
    std::string name;
    std::size_t bytes = 0;
    int major = 0, minor = 0;  // compute capability
  };
  std::vector<Device> devices;
};

/// `open_anyway`: open the plugin even without a driver, to tell whether it would work.
CudaReport cuda_report(bool open_anyway);

/// Most bytes that tensors took so far on a device: the allocator's peak on a GPU, the process's
/// peak resident size on the CPU.
std::int64_t peak_memory_bytes(torch::Device device);

}  // namespace llava::nn
