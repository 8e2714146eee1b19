// What `train` and `plan` share: the options of a training run, and the reference's names of them.
#pragma once

#include "llava/cli/args.h"
#include "llava/train/reference_flags.h"

namespace llava::cli {

inline void add_train_options(Args& args, train::TrainConfig& config,
                              train::ReferenceFlags& flags) {
  args.add(config);
  args.add(flags);
  for (const char* name : train::kReferenceSwitches)
    args.optional_value(name, "true", {"true", "false", "True", "False", "1", "0"});
  args.optional_value("gradient_checkpointing", "full",
                      {"none", "selective", "full", "true", "false", "True", "False"});
  args.alias("eval_strategy", "--evaluation_strategy");
  args.alias("model_name_or_path", "-m");
}

}  // namespace llava::cli
