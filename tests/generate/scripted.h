// Models for tests of generation: one that says what a script says, and an assistant around any
// model with Llama's tokenizer.
#pragma once

#include "llava/generate/assistant.h"
#include "support/tiny_model.h"

#include <map>
#include <string>

namespace llava::generate {

inline const text::Tokenizer& llama_tokenizer() {
  static const auto tokenizer = text::Tokenizer::load(LLAVA_GOLDEN "/../text");
  return tokenizer;
}

/// A tiny model with Llama's 32,000 tokens.
inline model::LlavaConfig wordy_config() {
  auto config = test::tiny_config();
  config.text.vocab_size = 32000;
  config.text.max_position_embeddings = 512;
  return config;
}

/// A model whose next logits are a function of the last token alone: attention and feed-forward add
/// nothing, a known token is a unit vector, and the head holds the function's values.
/// `logits[i]` are what follows `tokens[i]`; after other tokens all logits are 0.
inline model::Llava last_token_model(const std::vector<std::int64_t>& tokens,
                                     const torch::Tensor& logits, model::LlavaConfig config) {
  const auto slots = static_cast<std::int64_t>(tokens.size());
  config.text.hidden_size = slots;
  config.text.rms_norm_eps = 1e-12;
  model::Llava model(config, torch::kFloat32);
  model::initialize(model, 1);
  torch::NoGradGuard no_grad;
  for (auto& item : model->llama->named_parameters())
    item.value().fill_(item.key().find("norm") != std::string::npos ? 1 : 0);
  model->lm_head->weight.copy_(logits.t() / std::sqrt(static_cast<double>(slots)));
  for (std::int64_t slot = 0; slot < slots; ++slot)
    model->llama->embed_tokens->weight[tokens[static_cast<std::size_t>(slot)]][slot] = 1;
  return model;
}

/// A model that says `answer` (ids) after the token `first`, which is the last of every prompt.
/// A token must not come twice.
inline model::Llava scripted_model(std::int64_t first, std::vector<std::int64_t> answer,
                                   const model::LlavaConfig& config = wordy_config()) {
  std::vector<std::int64_t> tokens{first};
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  auto logits = torch::zeros({static_cast<std::int64_t>(tokens.size()), config.text.vocab_size});
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i)
    logits[static_cast<std::int64_t>(i)][tokens[i + 1]] = 10;
  return last_token_model(tokens, logits, config);
}

/// A prompt with more tokens behind it.
inline input::Example followed_by(input::Example prompt, const std::vector<std::int64_t>& ids) {
  prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  prompt.labels.resize(prompt.ids.size(), input::kIgnore);
  return prompt;
}

inline Assistant make_assistant(model::Llava model, const std::string& conv_mode = "vicuna_v1") {
  Assistant assistant(model, llama_tokenizer(), conv_mode);
  assistant.name = "tiny";
  return assistant;
}

/// The last token of vicuna_v1's prompts, ":".
constexpr std::int64_t kColon = 29901;

}  // namespace llava::generate
