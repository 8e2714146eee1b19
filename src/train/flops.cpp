#include "llava/train/flops.h"

#include "llava/nn/device.h"

#include <algorithm>
#include <chrono>

namespace llava::train {
namespace {

/// Tokens of each row after splicing.
std::vector<double> row_lengths(const input::Batch& batch) {
  std::vector<double> lengths;
  std::size_t picture = 0;
  for (std::int64_t row = 0; row < batch.rows(); ++row) {
    const auto end = batch.starts[static_cast<std::size_t>(row) + 1];
    auto length = static_cast<double>(end - batch.starts[static_cast<std::size_t>(row)]);
    for (; picture < batch.pictures.size() && batch.pictures[picture].slot < end; ++picture)
      length += static_cast<double>(batch.pictures[picture].rows - 1);
    lengths.push_back(length);
  }
  return lengths;
}

/// Forward of one tile through the layers that are used.
double tile_flops(const model::LlavaConfig& config) {
  const auto& v = config.vision;
  const auto side = static_cast<double>(v.side()), C = static_cast<double>(v.hidden_size);
  const double P = side * side + 1, F = static_cast<double>(v.intermediate_size);
  const auto patch = static_cast<double>(v.num_channels * v.patch_size * v.patch_size);
  std::int64_t layers = 0;
  for (const auto entry : config.feature_layers)
    layers = std::max(layers, entry < 0 ? v.num_hidden_layers + 1 + entry : entry);
  return 2 * side * side * patch * C +
         static_cast<double>(layers) * (2 * P * (4 * C * C + 2 * C * F) + 4 * P * P * C);
}

/// Multiply-adds of the projector for one row: {all Linears, the first alone}.
std::pair<double, double> projector_products(const model::LlavaConfig& config) {
  const auto depth = model::projector_depth(config.projector_type);
  const auto D = static_cast<double>(config.text.hidden_size);
  const double in = static_cast<double>(config.vision.hidden_size) *
                    static_cast<double>(config.feature_layers.size());
  if (depth == 0) return {0, 0};
  return {in * D + static_cast<double>(depth - 1) * D * D, in * D};
}

struct GpuPeak {
  const char* name;
  double bfloat16, float32;  // TFLOP/s, dense
};
// NVIDIA's data sheets (A100, H100 SXM, H200, L4, L40S, B200, RTX 4090), without sparsity; float32
// is that of the ordinary units, because TF32 is off.
constexpr GpuPeak kGpuPeaks[] = {{"A100", 312, 19.5}, {"H100 PCIe", 756, 51}, {"H100", 989, 67},
                                 {"H200", 989, 67},   {"B200", 2250, 75},     {"L40S", 362, 91.6},
                                 {"L4", 121, 30.3},   {"RTX 4090", 165, 82.6}};

double measured_cpu_flops(torch::ScalarType dtype) {
  torch::NoGradGuard no_grad;
  constexpr std::int64_t n = 768;
  const auto a = torch::ones({n, n}, dtype), b = torch::ones({n, n}, dtype);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto began = std::chrono::steady_clock::now();
    torch::matmul(a, b);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::max(best, 2.0 * n * n * n / seconds.count());
  }
  return best;
}

}  // namespace

Learning learning_of(const model::Llava& model) {
  Learning learning;
  for (const auto& item : model->named_parameters()) {
    if (!item.value().requires_grad()) continue;
    const std::string& name = item.key();
    if (name.starts_with("vision.")) {
      learning.vision = true;
    } else if (name.starts_with("projector.")) {
      learning.projector = true;
    } else if (name.find(".lora_") != std::string::npos) {
      learning.lora = true;
      learning.lora_parameters += item.value().numel();
    } else if (name != "image_newline") {
      learning.llm = true;
    }
  }
  return learning;
}

Work work_of(const input::Batch& batch) {
  Work work;
  for (const double length : row_lengths(batch)) {
    work.tokens += length;
    work.pairs += length * length / 2;  // causal
  }
  work.learned = static_cast<double>(batch.num_learned());
  for (const auto& picture : batch.pictures)
    work.tiles += static_cast<double>(picture.frames > 0 ? picture.frames : picture.shape.tiles());
  return work;
}

double layer_flops(const model::LlamaConfig& t, const Work& work) {
  const auto D = static_cast<double>(t.hidden_size), F = static_cast<double>(t.intermediate_size);
  const auto heads = static_cast<double>(t.num_attention_heads * t.head_dim);
  const auto kv = static_cast<double>(t.num_key_value_heads * t.head_dim);
  const auto L = static_cast<double>(t.num_hidden_layers);
  // Multiply-adds of a token in a layer: what makes queries, keys and values, and what comes behind
  // attention, which the last layer needs only where an output is.
  const double before = D * heads + 2 * D * kv, behind = D * heads + 3 * D * F;
  return 2 * work.tokens * (L * before + (L - 1) * behind) + 2 * work.learned * behind +
         4 * work.pairs * heads * L;
}

double useful_flops(const model::LlavaConfig& config, const Learning& learning, const Work& work) {
  const auto& t = config.text;
  const auto D = static_cast<double>(t.hidden_size);
  const auto heads = static_cast<double>(t.num_attention_heads * t.head_dim);
  const double attention = 4 * work.pairs * heads * static_cast<double>(t.num_hidden_layers);
  const double products = layer_flops(t, work) - attention;
  const bool below_llm = learning.vision || learning.projector || learning.lora;
  // Forward, the gradient of what goes in, the gradient of the weights.
  const double llm_passes = 1 + (learning.llm || below_llm ? 1 : 0) + (learning.llm ? 1 : 0);
  const double attention_passes = learning.llm || below_llm ? 3 : 1;
  double flops = products * llm_passes + attention * attention_passes;
  flops += 2 * D * static_cast<double>(t.vocab_size) * work.learned * (learning.llm ? 3 : 2);
  flops += 3 * 2 * static_cast<double>(learning.lora_parameters) * work.tokens;

  const auto side = static_cast<double>(config.vision.side());
  const double rows = config.merge.class_only ? 1 : side * side;
  const auto [projector, first] = projector_products(config);
  const double weight_passes = learning.projector ? 2 : 1;
  flops += 2 * work.tiles * rows * projector * weight_passes;
  if (learning.vision) {
    flops += 2 * work.tiles * rows * projector;
  } else if (learning.projector) {
    flops += 2 * work.tiles * rows * (projector - first);
  }
  return flops + work.tiles * tile_flops(config) * (learning.vision ? 3 : 1);
}

std::optional<double> peak_flops(const std::string& gpu, torch::ScalarType dtype) {
  for (const auto& peak : kGpuPeaks)
    if (gpu.find(peak.name) != std::string::npos)
      return 1e12 * (dtype == torch::kFloat32 ? peak.float32 : peak.bfloat16);
  return std::nullopt;
}

std::vector<std::string> known_gpus() {
  std::vector<std::string> names;
  for (const auto& peak : kGpuPeaks) names.emplace_back(peak.name);
  return names;
}

std::optional<double> peak_flops(torch::Device device, torch::ScalarType dtype) {
  if (device.is_cpu()) return measured_cpu_flops(dtype);
  const auto report = nn::cuda_report(/*open_anyway=*/false);
  const auto index = static_cast<std::size_t>(std::max<int>(0, device.index()));
  if (index >= report.devices.size()) return std::nullopt;
  return peak_flops(report.devices[index].name, dtype);
}

}  // namespace llava::train
