// What `run` and `chat` share: the options that say which model talks and how, and its loading.
#pragma once

#include "llava/cli/args.h"
#include "llava/generate/generator.h"

#include <optional>
#include <string>

namespace llava::cli {

struct TalkConfig {
  std::string model, model_base, vision_tower, conv_mode;
  std::optional<std::string> system;
  std::int64_t context = 0, bits = 16;
  media::ImageFlags image;
  generate::GenerateConfig generate;

  template <class Field>
  void fields(Field& field) {
    field("model", model, "model folder");
    field("model_base", model_base,
          "folder of the base model, for LoRA and projector-only folders");
    field("vision_tower", vision_tower, "folder of the vision tower, where the config names none");
    field("conv_mode", conv_mode,
          "chat template (vicuna_v1, llava_v0 ...); empty: the model's own");
    field("system", system, "system text instead of the template's");
    field("context", context, "tokens of prompt, pictures and answer; 0: what the model allows");
    field("bits", bits, "bits of the decoder's weights: 16 (as dtype says), 8 or 4");
    image.fields(field);
    generate.fields(field);
  }
};

/// The short names and those of llama.cpp and the reference.
void add_talk_aliases(Args& args);

/// Sets threads, chooses device and dtype, loads the model, and fills in the seed.
generate::Assistant load_assistant(TalkConfig& config, const Args& args);

/// "1 image (576 tokens) vision 21 ms | prefill 634 tokens 48 ms | 87 tokens 92.1 tokens/s | ..."
std::string timings_line(const generate::Timings& timings,
                         const std::vector<std::int64_t>& picture_tokens, torch::Device device);

/// Writes to stdout at once. Throws Error(failure) when nobody reads it any more.
void print(std::string_view text);

}  // namespace llava::cli
