#include "random_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

namespace llava::train {
namespace {

std::vector<std::pair<std::string, at::Generator>> generators(torch::Device device) {
  std::vector<std::pair<std::string, at::Generator>> found{
      {"random.cpu", at::detail::getDefaultCPUGenerator()}};
  if (!device.is_cpu())
    found.emplace_back("random.device", at::globalContext().defaultGenerator(device));
  return found;
}

}  // namespace

std::vector<std::pair<std::string, torch::Tensor>> random_states(torch::Device device) {
  std::vector<std::pair<std::string, torch::Tensor>> states;
  for (auto& [name, generator] : generators(device)) {
    const std::lock_guard lock(generator.mutex());
    states.emplace_back(name, generator.get_state());
  }
  return states;
}

void restore_random_states(const weights::StateDict& state, torch::Device device) {
  for (auto& [name, generator] : generators(device)) {
    const auto saved = state.at(name).clone();
    const std::lock_guard lock(generator.mutex());
    generator.set_state(saved);
  }
}

}  // namespace llava::train
