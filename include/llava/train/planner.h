// What a run will need before anything is loaded: bytes on each device by cause, time, traffic,
// disk; and what would fit instead. Every formula is that of the code it foretells.
#pragma once

#include "llava/train/config.h"

#include <map>
#include <string>
#include <vector>

namespace llava::train {

// Assumptions of every plan, which it prints.
inline constexpr double kContextBytes = 2e9;   // CUDA, NCCL and cuBLAS; they are no tensors
inline constexpr double kStragglers = 0.02;    // of a step's time
inline constexpr double kContention = 0.05;    // slowdown of kernels beside a collective
inline constexpr double kNetworkShare = 0.85;  // of the network's speed that a collective reaches

/// The machines, and the data where there is no file of it.
struct PlanConfig {
  std::string shape;
  std::string gpu = "A100";
  std::string gpu_memory = "80GB";
  std::int64_t num_nodes = 1;
  double efficiency = 0.55;
  double link_speed = 230;
  double network_speed = 25;
  std::int64_t num_samples = 0;
  std::int64_t tokens_per_sample = 0;
  double images_per_sample = 1;
  std::int64_t measure = 0;

  template <class Field>
  void fields(Field& field) {
    field("shape", shape, "model by name instead of a folder: llava-1.5-7b, llava-1.5-13b ...");
    field(
        "gpu", gpu,
        "kind of GPU, for its speed: A100, H100, H200, B200, L40S, L4, RTX 4090; or cpu, this one");
    field("gpu_memory", gpu_memory, "memory of each GPU; 1 GB is 10^9 bytes");
    field("num_nodes", num_nodes, "machines, each with nproc_per_node GPUs");
    field("efficiency", efficiency, "assumed share of the GPU's dense peak that is reached");
    field("link_speed", link_speed, "assumed GB/s of each GPU to those of its machine");
    field("network_speed", network_speed, "assumed GB/s of each GPU to other machines");
    field("num_samples", num_samples, "samples of the training set, without data_path");
    field("tokens_per_sample", tokens_per_sample,
          "mean tokens of a sample, pictures' rows included, without data_path");
    field("images_per_sample", images_per_sample, "pictures of a sample, without data_path");
    field("measure", measure,
          "also make this many real steps, alone on one device of this machine, and compare");
  }
};

/// "80GB" -> 8e10; also TB, GiB, MB and plain bytes.  Throws Error(usage) naming the option.
double parse_bytes(const std::string& text, const std::string& option);

/// Parameters of a model and which of them learn, counted on a model without memory.
struct Counts {
  double vision = 0, projector = 0, layers = 0, rest = 0;  // all; rest: embeddings, norm, head
  double learned = 0, learned_in_layers = 0;
  double largest_learned = 0;                // of one tensor
  double lora = 0;                           // of `learned`
  double products = 0, largest_product = 0;  // of `layers`: weights of Linears, which --bits packs
  double total() const { return vision + projector + layers + rest + lora; }
};
Counts count_parameters(const model::LlavaConfig& config, const StageConfig& stage);

/// Samples as far as plans depend on them: all, or an evenly spaced part, of a set.
struct SampleSizes {
  std::vector<std::int32_t> tokens;  // after splicing
  double samples = 0;                // of the whole set
  double tiles = 0, learned = 0;     // means of a sample
};

/// Of a training set: with an encoder exactly, without one estimated from the texts' bytes.
SampleSizes measure_samples(const data::Records& records, const input::Encoder* encoder,
                            const model::LlavaConfig& config, const data::MediaConfig& media,
                            std::int64_t threads);
/// As PlanConfig says.
SampleSizes assumed_samples(const PlanConfig& plan, const model::LlavaConfig& config);

/// What a plan is made for.
struct PlanRequest {
  model::LlavaConfig model;
  TrainConfig train;
  PlanConfig plan;
  SampleSizes samples;
  std::int64_t processes = 1;  // on each machine
  std::int64_t world() const { return processes * plan.num_nodes; }
};

struct Plan {
  // Bytes of one device.
  double weights = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0, vision = 0,
         buffers = 0;
  double total() const {
    return weights + gradients + optimizer + activations + logits + vision + buffers;
  }
  bool fits = false;
  // The fullest moment of a step is what counts above; gradients may be fewer then than at most.
  double most_gradients = 0;

  std::int64_t steps = 0;
  double tokens = 0;  // of the whole run
  double flops = 0;   // useful ones
  double hours = 0;
  double step_seconds = 0, exposed_seconds = 0;  // of a step; of it, spent waiting for the link
  double step_bytes = 0;                         // sent by one device
  double micro_tokens = 0;                       // of the largest micro-batch
  double imbalance = 1;                          // slowest rank over mean
  double padded = 1;  // tokens the reference's padding would compute, over ours
  double disk_bytes = 0, checkpoint_bytes = 0, host_bytes = 0;
};

Plan make_plan(const PlanRequest& request);

}  // namespace llava::train
