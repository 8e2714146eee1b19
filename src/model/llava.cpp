#include "llava/model/llava.h"

#include "llava/base/check.h"
#include "llava/model/image_features.h"
#include "llava/nn/gradients.h"
#include "llava/nn/loss.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

namespace llava::model {
namespace {

using torch::Tensor;

/// What remains of hidden states [N, P, C] of a tile: the patches, the class token, or both.
Tensor selected(const Tensor& states, const std::string& select) {
  if (select == "patch") return states.slice(1, 1);
  if (select == "cls") return states.slice(1, 0, 1);
  return states;
}

std::int64_t num_tiles(const input::PictureSpan& picture) {
  return picture.frames > 0 ? picture.frames : picture.shape.tiles();
}

/// The pieces between pictures and the pictures themselves, in order, along dimension 0.
Tensor spliced(const Tensor& text, const std::vector<input::PictureSpan>& pictures,
               const std::vector<Tensor>& insertions) {
  if (pictures.empty()) return text;
  std::vector<Tensor> pieces;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    pieces.push_back(text.slice(0, begin, pictures[i].slot));
    pieces.push_back(insertions[i]);
    begin = pictures[i].slot + 1;
  }
  pieces.push_back(text.slice(0, begin));
  return torch::cat(pieces);
}

/// Where rows begin after splicing.
std::vector<std::int64_t> spliced_starts(const input::Batch& batch) {
  std::vector<std::int64_t> starts;
  std::int64_t grown = 0;
  std::size_t next = 0;
  for (const auto start : batch.starts) {
    for (; next < batch.pictures.size() && batch.pictures[next].slot < start; ++next)
      grown += batch.pictures[next].rows - 1;
    starts.push_back(start + grown);
  }
  return starts;
}

}  // namespace

LlavaImpl::LlavaImpl(const LlavaConfig& config, const torch::TensorOptions& options)
    : config(config) {
  const auto D = config.text.hidden_size;
  vision = register_module("vision", ClipVision(config.vision, options));
  projector = register_module("projector", Projector(config, options));
  llama = register_module("llama", Llama(config.text, options));
  if (!config.text.tie_word_embeddings)
    lm_head = register_module("lm_head", nn::Linear(D, config.text.vocab_size, false, options));
  if (config.has_newline)
    image_newline = register_parameter("image_newline", torch::empty({D}, options));
}

Tensor LlavaImpl::pixel_values(const Tensor& tiles) {
  const auto table = media::normalization_table(config.tiling);  // [3][256]
  const auto lookup =
      torch::from_blob(const_cast<float*>(table[0].data()), {3 * 256}, torch::kFloat32)
          .to(tiles.device(), torch::kFloat32, /*non_blocking=*/false,
              /*copy=*/true);
  const auto channel =
      torch::arange(0, 3 * 256, 256, tiles.options().dtype(torch::kInt32)).view({1, 3, 1, 1});
  const auto index = tiles.to(torch::kInt32).add_(channel);
  return lookup.index_select(0, index.flatten()).view(tiles.sizes());
}

Tensor LlavaImpl::vision_features(const Tensor& pixels) {
  // Nothing is recorded for a frozen tower.
  const nn::PartOfTraining part(torch::GradMode::is_enabled());
  const at::AutoGradMode mode(torch::GradMode::is_enabled() && nn::is_trainable(*vision));
  std::vector<Tensor> features;
  for (const auto& states : vision->forward(pixels, config.feature_layers))
    features.push_back(selected(states, config.feature_select));
  return features.size() == 1 ? features[0] : torch::cat(features, -1);
}

std::vector<Tensor> LlavaImpl::image_features(const Tensor& features,
                                              const std::vector<input::PictureSpan>& pictures) {
  const bool pools_first = config.merge.pool_before_projector;
  std::vector<Tensor> inputs;  // what goes through the projector, per picture [N, P0, C]
  std::vector<std::int64_t> rows;
  for (const auto& picture : pictures) {
    auto tiles = features.narrow(0, picture.first_tile, num_tiles(picture));
    if (picture.frames > 0 && pools_first) tiles = pool_frames(tiles, config.merge);
    rows.push_back(tiles.size(0) * tiles.size(1));
    inputs.push_back(tiles.flatten(0, 1));
  }
  const auto projected = projector(inputs.size() == 1 ? inputs[0] : torch::cat(inputs));

  std::vector<Tensor> merged;
  const auto parts = projected.split_with_sizes(rows);
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    const auto& picture = pictures[i];
    auto tiles = parts[i].view({num_tiles(picture), -1, projected.size(1)});  // [N, P0, D]
    if (picture.frames > 0 && !pools_first) tiles = pool_frames(tiles, config.merge);
    merged.push_back(picture.frames > 0
                         ? merge_frames(tiles, config.merge, image_newline)
                         : merge_tiles(tiles, picture.shape, config.merge, image_newline));
    expect(merged[i].size(0) == picture.rows, Fault::data, "a picture of ",
           picture.shape.image_width, "x", picture.shape.image_height, " became ",
           merged[i].size(0), " rows where ", picture.rows,
           " were planned; was the batch made with another model's settings?");
  }
  return merged;
}

Spliced LlavaImpl::splice(const input::Batch& batch, std::vector<Tensor> features) {
  Spliced result;
  result.starts = spliced_starts(batch);
  const auto text = llama->embed_tokens(batch.ids.clamp_min(0));  // [T0, D]; marks are cut out
  if (batch.pictures.empty()) {
    result.embeds = text;
    result.labels = batch.labels;
    return result;
  }
  std::vector<Tensor> ignored;
  for (auto& rows : features) {
    rows = rows.to(text.scalar_type());
    ignored.push_back(torch::full({rows.size(0)}, input::kIgnore, batch.labels.options()));
  }
  result.embeds = spliced(text, batch.pictures, features);
  result.labels = spliced(batch.labels, batch.pictures, ignored);
  return result;
}

Spliced LlavaImpl::embed(const input::Batch& batch) {
  if (batch.pictures.empty()) return splice(batch, {});
  return splice(batch, image_features(vision_features(pixel_values(batch.tiles)), batch.pictures));
}

nn::TokenLoss LlavaImpl::token_loss(const input::Batch& batch) {
  const auto rows = embed(batch);
  const auto targets = nn::learned_targets(rows.labels, rows.starts);
  const bool learns = targets.positions.size(0) > 0;
  const auto learned = targets.positions.to(rows.embeds.device(), /*non_blocking=*/true);
  const auto hidden = llama->forward(rows.embeds, rows.starts, {}, learns ? learned : Tensor());
  auto loss =
      nn::token_loss(learns ? hidden : hidden.slice(0, 0, 0), head_weight(), targets.tokens);
  if (loss.sum.requires_grad() || !torch::GradMode::is_enabled()) return loss;
  // Text alone while only the projector learns: backward must still be possible, with zeros.
  for (const auto& parameter : parameters()) {
    if (!parameter.requires_grad()) continue;
    loss.sum = loss.sum + parameter.flatten()[0] * 0;
    break;
  }
  return loss;
}

Tensor LlavaImpl::loss(const input::Batch& batch, bool sum) {
  const auto loss = token_loss(batch);
  return sum ? loss.sum : loss.sum / std::max<std::int64_t>(loss.count, 1);
}

Tensor LlavaImpl::logits(const Tensor& hidden) {
  const auto logits = lm_head ? lm_head(hidden) : nn::linear(hidden, head_weight());
  return logits.to(torch::kFloat32);
}

const Tensor& LlavaImpl::head_weight() const {
  return lm_head ? lm_head->weight : llama->embed_tokens->weight;
}

namespace {

/// Of the language model's matrices. The published 0.02 belongs to width 4096; narrower models need
/// as much more for their logits to be able to say anything, or nothing frozen could be learned
/// through. What layers add to a token begins small beside the token itself, or it is lost under
/// them: at width 128 attention then took ten times as many steps to find a word again.
/// Source: torch.nn.Embedding; Radford et al., "Language models are unsupervised multitask
/// learners", 2019, section 2.3.
double language_deviation(const std::string& name, const LlamaConfig& text) {
  const double range = 0.02 * std::sqrt(4096.0 / static_cast<double>(text.hidden_size));
  if (name.ends_with("embed_tokens.weight") && !text.tie_word_embeddings) return 1;
  if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight"))
    return range / std::sqrt(2.0 * static_cast<double>(text.num_hidden_layers));
  return range;
}

/// Standard deviation of a weight's initial values; 0: zeros, below 0: ones. `name` is the
/// parameter's, for example "vision.encoder.layers.0.mlp.fc1.weight".
/// Source: transformers 5.24, modeling_clip.py and modeling_llava_next.py, _init_weights;
/// LlamaConfig and CLIPVisionConfig, initializer_range.
double initial_deviation(const std::string& name, const LlavaConfig& config) {
  constexpr double kRange = 0.02;
  const auto C = static_cast<double>(config.vision.hidden_size);
  const double by_depth = 1 / std::sqrt(2.0 * static_cast<double>(config.vision.num_hidden_layers));
  const bool is_norm = name.find("norm") != std::string::npos;
  if (name == "image_newline") return 1 / std::sqrt(static_cast<double>(config.text.hidden_size));
  if (name.ends_with("bias")) return 0;
  if (is_norm) return -1;
  if (!name.starts_with("vision.")) return language_deviation(name, config.text);
  if (name.ends_with("class_embedding") || name.ends_with("out_proj.weight"))
    return 1 / std::sqrt(C);
  if (name.ends_with("fc1.weight")) return 1 / std::sqrt(2 * C);
  if (name.find(".layers.") != std::string::npos) return by_depth / std::sqrt(C);  // q, k, v, fc2
  return kRange;
}

}  // namespace

void initialize(Llava& model, std::uint64_t seed,
                const std::function<bool(const std::string&)>& is_chosen) {
  torch::NoGradGuard no_grad;
  std::uint64_t number = 0;
  for (auto& item : model->named_parameters()) {
    auto& weight = item.value();
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed + 1'000'003 * number++);
    if (is_chosen && !is_chosen(item.key())) continue;
    const auto fill = [&](const Tensor& place) {  // one block at a time, in float32 on the CPU
      auto values = torch::empty(place.sizes(), torch::kFloat32);
      if (item.key().starts_with("projector.")) {
        // torch's default for Linear: uniform within 1 / sqrt(fan in), weight and bias alike.
        const auto in = static_cast<double>(weight.dim() > 1 ? weight.size(1)
                                                             : model->projector->layers[0]->in());
        values.uniform_(-1 / std::sqrt(in), 1 / std::sqrt(in), generator);
      } else {
        const double deviation = initial_deviation(item.key(), model->config);
        if (deviation > 0) {
          values.normal_(0, deviation, generator);
        } else {
          values.fill_(deviation < 0 ? 1 : 0);
        }
      }
      place.copy_(values);
    };
    constexpr std::int64_t kBlock = 1 << 24;  // values
    auto flat = weight.view({-1});
    for (std::int64_t begin = 0; begin < flat.size(0); begin += kBlock)
      fill(flat.slice(0, begin, std::min(flat.size(0), begin + kBlock)));
  }
}

}  // namespace llava::model
