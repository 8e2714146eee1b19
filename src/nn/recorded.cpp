#include "llava/nn/recorded.h"

#include "cuda_plugin.h"
#include "llava/base/log.h"
#include "llava/base/plugin.h"

namespace llava::nn {
namespace {

void call(void* work) { (*static_cast<std::function<void()>*>(work))(); }

void with_graph(const char* name, void* graph) {
  reinterpret_cast<LlavaCudaGraphFunction>(plugin_symbol(name))(graph);
}

}  // namespace

RecordedWork::RecordedWork(torch::Device device, std::function<void()> work)
    : work_(std::move(work)) {
  if (!device.is_cuda()) return;
  try {
    const auto record =
        reinterpret_cast<LlavaCudaRecordFunction>(plugin_symbol("llava_cuda_record"));
    graph_ = record(device.index(), call, &work_);
  } catch (const std::exception& error) {
    log::warn("decoding without a CUDA graph: ", error.what());
  }
}

RecordedWork::~RecordedWork() {
  if (graph_) with_graph("llava_cuda_forget", graph_);
}

void RecordedWork::run() {
  if (graph_)
    with_graph("llava_cuda_replay", graph_);
  else
    work_();
}

}  // namespace llava::nn
