#include "random_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

namespace llava::train {
namespace {

std::vector<std::pair<std::string, at::Generator>> generators(torch::Device device,
                                                              std::int64_t rank) {
  const std::string of_rank = "." + std::to_string(rank);
  std::vector<std::pair<std::string, at::Generator>> found{
      {"random.cpu" + of_rank, at::detail::getDefaultCPUGenerator()}};
  if (!device.is_cpu())
    found.emplace_back("random.device" + of_rank, at::globalContext().defaultGenerator(device));
  return found;
}

}  // namespace

std::vector<std::pair<std::string, torch::Tensor>> random_states(torch::Device device,
                                                                 std::int64_t rank) {
  std::vector<std::pair<std::string, torch::Tensor>> states;
  for (auto& [name, generator] : generators(device, rank)) {
    const std::lock_guard lock(generator.mutex());
    states.emplace_back(name, generator.get_state());
  }
  return states;
}

void restore_random_states(const weights::StateDict& saved, torch::Device device,
                           std::int64_t rank) {
  for (auto& [name, generator] : generators(device, rank)) {
    if (!saved.contains(name)) continue;
    const auto state = saved.at(name).clone();
    const std::lock_guard lock(generator.mutex());
    generator.set_state(state);
  }
}

}  // namespace llava::train
