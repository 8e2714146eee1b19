#include "talk.h"

#include "llava/nn/device.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>

namespace llava::cli {

void add_talk_aliases(Args& args) {
  args.alias("model", "-m");
  args.alias("model", "--model_path");
  args.alias("context", "-c");
  args.alias("context", "--ctx_size");
  args.alias("max_new_tokens", "-n");
  args.alias("max_new_tokens", "--n_predict");
  args.alias("temperature", "--temp");
  args.alias("repeat_penalty", "--repetition_penalty");
}

generate::Assistant load_assistant(TalkConfig& config, const Args& args) {
  const auto& common = args.common();
  expect(!config.model.empty(), Fault::usage, "name a model folder with -m DIR");
  config.generate.validate();
  expect(config.context >= 0, Fault::usage, "context must be 0 (the model's) or positive, got ",
         config.context);
  config.generate.seed = static_cast<std::uint64_t>(common.seed);
  nn::set_threads(common.threads);
  return generate::load_assistant(config.model,
                                  {.load = {.device = nn::choose_device(common.device),
                                            .dtype = nn::choose_dtype(common.dtype),
                                            .model_base = config.model_base,
                                            .vision_tower = config.vision_tower},
                                   .conv_mode = config.conv_mode,
                                   .context = config.context,
                                   .image = config.image.options(),
                                   .bits = config.bits});
}

std::string timings_line(const generate::Timings& timings,
                         const std::vector<std::int64_t>& picture_tokens, torch::Device device) {
  char text[320];
  std::string line;
  if (!picture_tokens.empty()) {
    const auto tokens =
        std::accumulate(picture_tokens.begin(), picture_tokens.end(), std::int64_t{0});
    std::snprintf(text, sizeof text, "%zu image%s (%lld tokens) read %.0f ms, vision %.0f ms | ",
                  picture_tokens.size(), picture_tokens.size() == 1 ? "" : "s",
                  static_cast<long long>(tokens), timings.image_ms, timings.vision_ms);
    line += text;
  }
  // The first token comes out of the prompt: the rate is that of the others.
  const auto steps = std::max<std::int64_t>(timings.decode_tokens - 1, 0);
  const double rate = steps > 0 ? 1000.0 * static_cast<double>(steps) / timings.decode_ms : 0;
  std::snprintf(text, sizeof text,
                "prefill %lld tokens %.0f ms | %lld tokens, %.1f tokens/s | peak %.1f GiB",
                static_cast<long long>(timings.prefill_tokens), timings.prefill_ms,
                static_cast<long long>(timings.decode_tokens), rate,
                static_cast<double>(nn::peak_memory_bytes(device)) / (1 << 30));
  return line + text;
}

void print(std::string_view text) {
  const bool written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  expect(written, Fault::failure, "stdout cannot be written (", std::strerror(errno), ")");
}

}  // namespace llava::cli
