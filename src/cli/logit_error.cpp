#include "logit_error.h"

#include <algorithm>

namespace llava::cli {
namespace {

using torch::Tensor;

Tensor logits(model::Llava& model, const Tensor& prompt, std::int64_t count) {
  torch::NoGradGuard no_grad;
  const auto T = prompt.size(0);
  return model->logits(model->llama->forward(prompt, {0, T}).slice(0, T - count));
}

}  // namespace

LogitError::LogitError(model::Llava model, const input::Batch& batch) : model_(std::move(model)) {
  torch::NoGradGuard no_grad;
  const auto rows = model_->embed(batch);
  prompt_ = rows.embeds.slice(0, 0, rows.starts[1]);
  before_ = logits(model_, prompt_, std::min<std::int64_t>(64, prompt_.size(0)));
}

double LogitError::of_prompt() const { return distance(logits(model_, prompt_, before_.size(0))); }

double LogitError::of_decode() const {
  torch::NoGradGuard no_grad;
  const auto T = prompt_.size(0), first = T - before_.size(0);
  auto cache = model::make_cache(model_->llama, T);
  if (first > 0) model_->llama->forward(prompt_.slice(0, 0, first), {0, first}, {&cache});
  std::vector<Tensor> hidden;
  for (auto t = first; t < T; ++t)
    hidden.push_back(model_->llama->forward(prompt_.slice(0, t, t + 1), {0, 1}, {&cache}));
  return distance(model_->logits(torch::cat(hidden)));
}

double LogitError::distance(const Tensor& logits) const {
  return ((logits - before_).norm() / before_.norm()).item<double>();
}

}  // namespace llava::cli
