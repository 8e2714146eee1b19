#include "llava/model/projector.h"

#include "llava/base/check.h"
#include "llava/nn/activation.h"

namespace llava::model {

using torch::Tensor;

std::int64_t projector_depth(const std::string& type) {
  if (type == "linear") return 1;
  if (type == "identity") return 0;
  const std::string_view prefix = "mlp", suffix = "x_gelu";
  if (type.starts_with(prefix) && type.ends_with(suffix)) {
    const auto digits = type.substr(prefix.size(), type.size() - prefix.size() - suffix.size());
    const bool is_number = !digits.empty() && digits.size() <= 2 &&
                           digits.find_first_not_of("0123456789") == std::string::npos;
    if (is_number && std::stoi(digits) > 0) return std::stoi(digits);
  }
  fail(Fault::data, "projector type \"", type,
       "\" is not known; this program has linear, mlpNx_gelu (N from 1) and identity");
}

ProjectorImpl::ProjectorImpl(const LlavaConfig& config, const torch::TensorOptions& options)
    : activation(config.projector_act) {
  const auto D = config.text.hidden_size;
  auto in = config.vision.hidden_size * static_cast<std::int64_t>(config.feature_layers.size());
  const auto depth = projector_depth(config.projector_type);
  for (std::int64_t i = 0; i < depth; ++i) {
    layers.emplace_back(in, D, config.projector_bias, options);
    in = D;
  }
  if (config.projector_type == "linear") {  // its parameters go by bare names in every checkpoint
    register_parameter("weight", layers[0]->weight);
    if (config.projector_bias) register_parameter("bias", layers[0]->bias);
  } else {
    for (std::int64_t i = 0; i < depth; ++i)
      register_module(std::to_string(2 * i), layers[i]);  // odd places: the activations
  }
  expect(in == D, Fault::data,
         "an identity projector needs a vision width equal to the text width, got ", in, " and ",
         D);
}

Tensor ProjectorImpl::forward(const Tensor& features) {
  const auto activate = [this](const Tensor& x) {
    if (activation == "gelu") return torch::gelu(x);
    if (activation == "gelu_pytorch_tanh" || activation == "gelu_new")
      return torch::gelu(x, "tanh");
    if (activation == "quick_gelu") return nn::quick_gelu(x);
    if (activation == "silu") return torch::silu(x);
    if (activation == "relu") return torch::relu(x);
    if (activation == "linear") return x;
    fail(Fault::data, "projector activation \"", activation, "\" is not known");
  };
  auto x = features;
  for (std::size_t i = 0; i < layers.size(); ++i) x = layers[i](i == 0 ? x : activate(x));
  return x;
}

}  // namespace llava::model
