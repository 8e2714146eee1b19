#include "logit_error.h"

namespace llava::cli {

LogitError::LogitError(model::Llava model, const input::Batch& batch) : model_(std::move(model)) {
  torch::NoGradGuard no_grad;
  prompt_ = model_->embed(batch);
  before_ = logits();
}

double LogitError::now() const {
  const auto difference = logits() - before_;
  return (difference.norm() / before_.norm()).item<double>();
}

torch::Tensor LogitError::logits() const {
  torch::NoGradGuard no_grad;
  return model_->logits(model_->llama->forward(prompt_.embeds, prompt_.starts).slice(0, -64));
}

}  // namespace llava::cli
