#include "llava/model/chat_template.h"

#include "parts.h"

#include "llava/base/files.h"

#include <algorithm>
#include <string_view>

namespace llava::model {
namespace {

/// All that a folder says about its chat template, as text: where it stands changed three times.
std::string chat_template_text(const std::string& folder) {
  std::string text;
  for (const char* name : {"/chat_template.jinja", "/chat_template.json", "/tokenizer_config.json"})
    if (text.find("{%") == text.npos && is_file(folder + name)) text = read_file(folder + name);
  return text.find("{%") == text.npos ? "" : text;
}

/// A mark that a decoder's chat template writes, and the template that writes it the same way.
struct Mark {
  std::string_view mark, decoder, name;  // decoder "": any
};
constexpr Mark kMarks[] = {
    {"<|start_header_id|>", "", "llava_llama_3"},
    {"<|im_start|>", "qwen2", "qwen_1_5"},
    {"<|im_start|>", "", "chatml_direct"},
    {"[INST]", "mistral", "mistral_instruct"},
    {"[INST]", "", "llava_llama_2"},
    {"ASSISTANT:", "", "vicuna_v1"},
};

/// 128,000 words and 256 special tokens. Source: meta-llama, Meta-Llama-3-8B, config.json.
constexpr std::int64_t kLlama3Vocabulary = 128'256;

}  // namespace

std::string choose_template(const LlavaConfig& config, const std::string& tokenizer_folder,
                            const std::string& asked) {
  if (!asked.empty()) return asked;
  if (!config.conversation.empty()) return config.conversation;
  const auto& decoder = config.text.model_type;
  const std::string text = chat_template_text(tokenizer_folder);
  for (const auto& row : kMarks)
    if ((row.decoder.empty() || row.decoder == decoder) && text.find(row.mark) != text.npos)
      return std::string(row.name);
  if (decoder == "mistral") return "mistral_instruct";
  if (decoder == "qwen2") return "qwen_1_5";
  return config.text.vocab_size >= kLlama3Vocabulary ? "llava_llama_3" : "vicuna_v1";
}

}  // namespace llava::model
