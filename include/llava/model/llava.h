// LLaVA: tiles -> CLIP -> projector -> one sequence with the text -> Llama.
//   B rows   T tokens of all rows after splicing   D text width   V vocabulary
//   N tiles  P feature rows of one picture         C vision width
#pragma once

#include "llava/input/batch.h"
#include "llava/model/clip_vision.h"
#include "llava/model/config.h"
#include "llava/model/llama.h"
#include "llava/model/projector.h"
#include "llava/nn/loss.h"

#include <functional>
#include <string>
#include <vector>

namespace llava::model {

/// A batch after its pictures were spliced in.
struct Spliced {
  torch::Tensor embeds;              // [T, D]
  torch::Tensor labels;              // [T] int64
  std::vector<std::int64_t> starts;  // [B+1]
};

struct LlavaImpl : torch::nn::Module {
  /// Weights are left uninitialised; load them or call initialize().
  LlavaImpl(const LlavaConfig& config, const torch::TensorOptions& options);

  /// Bytes [N,3,S,S] uint8 -> pixels [N,3,S,S] as the reference normalises them, in float32.
  torch::Tensor pixel_values(const torch::Tensor& tiles);

  /// Hidden states of the selected layer(s), class token handled as configured: [N, P0, C].
  torch::Tensor vision_features(const torch::Tensor& pixels);

  /// Per picture, the rows spliced into the text: [P_i, D]. `features` are vision_features of the
  /// batch's tiles.
  std::vector<torch::Tensor> image_features(const torch::Tensor& features,
                                            const std::vector<input::PictureSpan>& pictures);

  /// The batch with its pictures' rows [P_i, D] where their marks are; its tiles are not looked at.
  Spliced splice(const input::Batch& batch, std::vector<torch::Tensor> features);

  /// All of the above.  Throws Error(data) if rows and marks disagree.
  Spliced embed(const input::Batch& batch);

  /// Next-token cross-entropy over learned positions. The sum has gradients, be they zeros,
  /// whenever anything learns.
  nn::TokenLoss token_loss(const input::Batch& batch);

  /// Mean next-token cross-entropy over learned positions (fp32), or their sum.
  /// Zero, with zero gradients, when nothing is learned.
  torch::Tensor loss(const input::Batch& batch, bool sum = false);

  /// Logits of hidden states [n, D] -> [n, V] float32.
  torch::Tensor logits(const torch::Tensor& hidden);

  /// The output head's weight [V, D]: lm_head's, or the embedding's when tied.
  const torch::Tensor& head_weight() const;

  LlavaConfig config;
  ClipVision vision{nullptr};
  Projector projector{nullptr};
  Llama llama{nullptr};
  nn::Linear lm_head{nullptr};  // absent (nullptr) when embeddings are tied
  torch::Tensor image_newline;  // [D]; undefined when the model has none
};
TORCH_MODULE(Llava);

/// Fills weights with the initial values that a fresh model starts from: all, or those whose names
/// are chosen. A weight's values depend on `seed` and its place in the model alone.
void initialize(Llava& model, std::uint64_t seed,
                const std::function<bool(const std::string&)>& is_chosen = {});

}  // namespace llava::model
