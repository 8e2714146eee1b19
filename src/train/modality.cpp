#include "modality.h"

#include <algorithm>

namespace llava::train {

ByModality split_by_modality(const input::Batch& batch, const torch::Tensor& each) {
  const auto* labels = batch.labels.const_data_ptr<std::int64_t>();
  std::vector<float> has_picture;  // of each learned token, in order
  std::size_t picture = 0;
  for (std::size_t row = 0; row + 1 < batch.starts.size(); ++row) {
    bool has = false;
    for (; picture < batch.pictures.size() && batch.pictures[picture].slot < batch.starts[row + 1];
         ++picture)
      has = true;
    for (auto t = batch.starts[row] + 1; t < batch.starts[row + 1]; ++t)
      if (labels[t] != input::kIgnore) has_picture.push_back(has ? 1 : 0);
  }
  const auto share = torch::tensor(has_picture).to(each.device(), /*non_blocking=*/true);  // [n]
  ByModality split;
  split.image = (each * share).sum();
  split.text = (each * (1 - share)).sum();
  split.image_tokens = std::count(has_picture.begin(), has_picture.end(), 1.0F);
  split.text_tokens = static_cast<std::int64_t>(has_picture.size()) - split.image_tokens;
  return split;
}

}  // namespace llava::train
