// What a run leaves: the trained model as a folder that others load, read back and compared.
#pragma once

#include "llava/train/config.h"

namespace llava::train {

/// On rank 0 of all ranks (a collective), writes output_dir/model (a PEFT folder with the other
/// trained tensors for LoRA, else a whole model in the layout of saved_layout) and, when the
/// projector alone learned, mm_projector.bin and the model's config.json keys in output_dir, as the
/// reference's Stage 1 leaves them. Then drops the model, loads the folder and compares logits on a
/// few samples of `data`. Throws Error(verification) when they are not the same.
void save_final_model(const TrainConfig& config, const Compute& compute, model::Pretrained start,
                      const TrainingData& data, dist::GradientSync& sync,
                      const dist::ProcessGroup& group);

}  // namespace llava::train
