// Compiled into libllava_cuda.so only: the one file of this folder that includes NCCL's headers.
// They must be those that LibTorch was built with: ProcessGroupNCCL::Options holds a struct of
// theirs by value.

#include "nccl_plugin.h"

#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>

extern "C" void llava_make_nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                int world_size, std::chrono::milliseconds timeout,
                                torch::Device device, c10::intrusive_ptr<c10d::Backend>& backend) {
  // Failures are found by our own watcher, which names the step and the collective; NCCL's would
  // end the process before it.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/1);
  c10::cuda::set_device(device.index());
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = timeout;
  auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, world_size, options);
  nccl->setBoundDeviceId(device);
  nccl->eagerConnectSingleDevice(device);  // a bad network fails now, not after the first forward
  backend = nccl;
}
