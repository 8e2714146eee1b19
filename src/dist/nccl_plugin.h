// The one function by which the GPU plugin makes an NCCL backend.
#pragma once

#include "llava/torch.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

namespace llava::dist {

constexpr const char* kMakeNccl = "llava_make_nccl";

/// Fills `backend`, connected to all ranks.  Throws Error(peer).
using MakeNccl = void(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world_size,
                      std::chrono::milliseconds timeout, torch::Device device,
                      c10::intrusive_ptr<c10d::Backend>& backend);

}  // namespace llava::dist
