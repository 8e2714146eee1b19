#include "llava/train/identity.h"

#include "crc32c.h"
#include "llava/base/log.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <algorithm>

namespace llava::train {

Json effective_settings(const TrainConfig& config, const Compute& compute) {
  Json settings = config_json(config);
  settings["seed"] = compute.seed;
  settings["dtype"] = compute.dtype == torch::kBFloat16 ? "bfloat16" : "float32";
  return settings;
}

Json environment(const TrainConfig& config, const Compute& compute) {
  return {{"libtorch", TORCH_VERSION},
          {"device", compute.device.is_cuda() ? "cuda" : "cpu"},
          {"threads", at::get_num_threads()},
          {"cpu_capability", at::get_cpu_capability()},
          {"world_size", compute.world_size},
          {"zero", config.sync.zero},
          {"per_device_train_batch_size", config.data.per_device_train_batch_size}};
}

ModelFacts facts_of(const model::Llava& model) {
  constexpr std::int64_t kValues = 64;  // of the beginning of each frozen tensor
  ModelFacts facts{learning_of(model), 0};
  for (const auto& item : model->named_parameters()) {
    facts.fingerprint = crc32c(item.key(), facts.fingerprint);
    if (item.value().requires_grad()) continue;
    const auto flat = item.value().detach().flatten();
    const auto head = flat.slice(0, 0, std::min(kValues, flat.size(0)))
                          .to(torch::kCPU, torch::kFloat32)
                          .contiguous();
    facts.fingerprint =
        crc32c({static_cast<const char*>(head.const_data_ptr()), head.nbytes()}, facts.fingerprint);
  }
  return facts;
}

Json run_identity(const TrainConfig& config, const Compute& compute, const ModelFacts& facts,
                  std::uint64_t data_fingerprint) {
  const auto& data = config.data;
  return {{"settings", effective_settings(config, compute)},
          {"data", data_fingerprint},
          {"model", facts.fingerprint},
          {"global_batch", data.per_device_train_batch_size * data.gradient_accumulation_steps *
                               compute.world_size},
          {"environment", environment(config, compute)}};
}

void expect_same_run(const Json& before, const Json& now, const std::string& what) {
  const std::string why = "cannot go on from " + what + ": ";
  const std::string changes = describe_changes(before.at("settings"), now.at("settings"));
  expect(changes.empty(), Fault::usage, why, changes,
         "; give the old settings, or start a new run from the model");
  for (const auto& [key, meaning] : {std::pair("data", "the training set is not the same"),
                                     std::pair("model", "the frozen weights are not the same"),
                                     std::pair("global_batch", "the global batch is not the same")})
    expect(before.at(key) == now.at(key), Fault::usage, why, meaning, " (", before.at(key).dump(),
           " then, ", now.at(key).dump(), " now)");
  for (const auto& [key, value] : now.at("environment").items()) {
    const Json old = before.at("environment").value(key, Json());
    if (old != value)
      log::warn("going on, but not bit for bit: ", key, " was ", old.dump(), " and is ",
                value.dump());
  }
}

}  // namespace llava::train
