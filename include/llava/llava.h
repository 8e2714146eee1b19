// The front door: a model folder, pictures and words in, words out. Mentions no torch type, so that
// a program which only wants to talk compiles in a blink. llava/model/llava.h,
// llava/generate/generator.h and llava/train/trainer.h give the parts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct ChatOptions {
  std::string device = "auto";  // "cpu", "cuda", "cuda:1"; auto: a GPU where there is one
  std::string dtype = "auto";   // "float32", "bfloat16", "float16"
  std::string conv_mode = {};   // chat template; "": the model's own
  std::string system = {};      // system text; "": the template's
  std::string model_base = {};  // for LoRA and projector-only folders
  double temperature = 0.2;     // 0: the likeliest token always
  double top_p = 1, min_p = 0;
  std::int64_t top_k = 0;
  double repeat_penalty = 1;
  std::int64_t max_new_tokens = 512;  // of one answer
  std::int64_t context = 0;           // tokens of the whole conversation; 0: the model's limit
  std::int64_t bits = 16;             // of the decoder's weights: 16 (as dtype), 8 or 4
  std::int64_t threads = 0;           // on a CPU; 0: all cores
  std::uint64_t seed = 42;
};

/// A model ready to talk about images. Not for use by two threads at once.
class Chat {
 public:
  /// Throws llava::Error (llava/base/check.h) saying what is wrong with the folder or the options.
  explicit Chat(const std::string& model_folder, const ChatOptions& options = {});
  ~Chat();
  Chat(Chat&&) noexcept;
  Chat& operator=(Chat&&) noexcept;

  /// Appends a user's turn and returns the answer. Images go where the text's "<image>" marks are,
  /// or in front. `on_text` sees the answer as it grows and returns false to stop early. Throws
  /// llava::Error if an image cannot be read or the conversation does not fit; the conversation is
  /// then as it was before the call.
  std::string ask(const std::string& text, const std::vector<std::string>& images = {},
                  const std::function<bool(std::string_view)>& on_text = {});

  /// Starts a new conversation with the same model.
  void clear();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace llava
