// The chat templates, byte for byte as in the reference's training and inference.
// Source: haotian-liu/LLaVA 1.2.2 and LLaVA-VL/LLaVA-NeXT, conversation.py.
#include "templates.h"

#include "llava/base/check.h"
#include "llava/base/config.h"

#include <algorithm>

namespace llava::text {
namespace {

// ── Texts ────────────────────────────────────────────────────────────────────────────────────────

constexpr std::string_view kHuman =
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions.";
constexpr std::string_view kUser =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.";
constexpr std::string_view kMmtag =
    "A chat between a curious user and an artificial intelligence assistant. The assistant is "
    "able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language.The visual content will be provided with the "
    "following format: <Image>visual content</Image>.";
constexpr std::string_view kLlama2 =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\n\nIf a question does not make any sense, or is not "
    "factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information.";
constexpr std::string_view kVision =
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.";
constexpr std::string_view kMpt =
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers.";
constexpr std::string_view kQwen25 =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
constexpr std::string_view kOrca =
    "You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your "
    "reasoning step-by-step to be sure you get the right answers!";
constexpr std::string_view kSimple =
    "Answer the questions about the visual content that the user provides.";
constexpr std::string_view kLlama2Mmtag =
    "Answer the questions about the visual content that the user provides.The visual content will "
    "be provided with the following format: <Image>visual content</Image>.";

// ── Families: the pieces that several templates share ────────────────────────────────────────────

using Aliases = std::array<std::string_view, 2>;

constexpr Template hash_marks(std::string_view name, Aliases aliases, std::string_view system) {
  return {.name = name,
          .aliases = aliases,
          .system = system,
          .system_end = "###",
          .user = "Human:",
          .user_lead = " ",
          .user_end = "###",
          .assistant = "Assistant:",
          .assistant_lead = " ",
          .assistant_end = "###",
          .stop = "###",
          .learns = Learns::hash_marks};
}

constexpr Template vicuna(std::string_view name, Aliases aliases, std::string_view system) {
  return {.name = name,
          .aliases = aliases,
          .system = system,
          .system_end = " ",
          .user = "USER:",
          .user_lead = " ",
          .user_end = " ",
          .assistant = "ASSISTANT:",
          .assistant_lead = " ",
          .assistant_end = "</s>",
          .stop = "</s>"};
}

constexpr Template llama_2(std::string_view name, Aliases aliases, std::string_view system,
                           std::string_view between = "<s>") {
  return {.name = name,
          .aliases = aliases,
          .system_begin = "<<SYS>>\n",
          .system = system,
          .system_end = "\n<</SYS>>\n\n",
          .user = "[INST] ",
          .user_end = " [/INST]",
          .assistant_lead = " ",
          .assistant_tail = " ",
          .assistant_end = "</s>",
          .between = between,
          .stop = "</s>",
          .system_in_first_turn = true};
}

constexpr Template chatml(std::string_view name, Aliases aliases, std::string_view system) {
  return {.name = name,
          .aliases = aliases,
          .system_begin = "<|im_start|>system\n",
          .system = system,
          .system_end = "<|im_end|>",
          .user = "<|im_start|>user\n",
          .user_end = "<|im_end|>",
          .assistant = "<|im_start|>assistant\n",
          .assistant_end = "<|im_end|>",
          .stop = "<|im_end|>"};
}

constexpr Template qwen(std::string_view name, Aliases aliases, std::string_view system) {
  auto chat = chatml(name, aliases, system);
  chat.system_end = chat.user_end = chat.assistant_end = "<|im_end|>\n";
  chat.learns = Learns::chatml;
  return chat;
}

constexpr Template with_mmtag(Template chat) {
  chat.mmtag = true;
  return chat;
}

constexpr Template with_example(Template chat) {
  chat.has_example = true;
  return chat;
}

constexpr Template kTemplates[] = {
    vicuna("vicuna_v1", {"v1"}, kUser),
    vicuna("llava_v1", {}, kHuman),
    with_mmtag(vicuna("v1_mmtag", {"llava_v1_mmtag"}, kMmtag)),
    {.name = "plain",
     .aliases = {"v0_plain"},
     .user_end = "\n",
     .assistant_end = "\n",
     .stop = "\n",
     .learns = Learns::caption,
     .has_system = false},
    with_example(hash_marks("v0", {"default"}, kHuman)),
    hash_marks("llava_v0", {}, kHuman),
    with_mmtag(hash_marks("v0_mmtag", {"llava_v0_mmtag"}, kMmtag)),
    llama_2("llama_2", {}, kLlama2),
    llama_2("llava_llama_2", {}, kVision),
    llama_2("llava_llama_2_simple", {}, kSimple),
    with_mmtag(llama_2("llava_llama_2_mmtag", {}, kLlama2Mmtag)),
    llama_2("mistral_instruct", {"llava_mistral_instruct"}, "", ""),
    chatml("mpt", {}, kMpt),
    chatml("chatml_direct", {"mistral_direct"}, "Answer the questions."),
    chatml("mistral_orca", {}, kOrca),
    {.name = "mistral_zephyr",
     .system_begin = "<|system|>\n",
     .system = "You are a helpful AI assistant.",
     .system_end = "</s>",
     .user = "<|user|>\n",
     .user_end = "</s>",
     .assistant = "<|assistant|>\n",
     .assistant_end = "</s>",
     .stop = "</s>"},
    qwen("qwen_1_5", {"qwen_2"}, "You are a helpful assistant."),
    qwen("qwen_2_5", {}, kQwen25),
    {.name = "gemma_instruct",
     .user = "<start_of_turn>user\n",
     .user_end = "<end_of_turn>\n",
     .assistant = "<start_of_turn>model\n",
     .assistant_end = "<end_of_turn>\n",
     .stop = "<end_of_turn>",
     .has_system = false},
    {.name = "llava_llama_3",
     .system_begin = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
     .system = kVision,
     .system_end = "<|eot_id|>",
     .user = "<|start_header_id|>user<|end_header_id|>\n\n",
     .user_end = "<|eot_id|>",
     .assistant = "<|start_header_id|>assistant<|end_header_id|>\n\n",
     .assistant_end = "<|eot_id|>",
     .stop = "<|eot_id|>",
     .learns = Learns::llama_3,
     .trims = true,
     .always_open = true},
};

}  // namespace

const std::string_view kExampleQuestion =
    "What are the key differences between renewable and non-renewable energy sources?";
const std::string_view kExampleAnswer =
    "Renewable energy sources are those that can be replenished naturally in a relatively short "
    "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
    "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, "
    "and natural gas. Here are some key differences between renewable and non-renewable energy "
    "sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
    "emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n";

const Template& find_template(const std::string& name) {
  for (const auto& chat : kTemplates) {
    const auto& aliases = chat.aliases;
    if (chat.name == name ||
        (!name.empty() && std::find(aliases.begin(), aliases.end(), name) != aliases.end()))
      return chat;
  }
  std::string all;
  for (const auto& known : template_names()) all += (all.empty() ? "" : ", ") + known;
  fail(Fault::usage, "no chat template is called \"", name, "\"",
       suggestion(name, template_names()), "; there are ", all);
}

std::string_view template_name(const Template& chat) { return chat.name; }

std::vector<std::string> template_names() {
  std::vector<std::string> names;
  for (const auto& chat : kTemplates) {
    names.emplace_back(chat.name);
    for (const auto alias : chat.aliases) {
      if (!alias.empty()) names.emplace_back(alias);
    }
  }
  return names;
}

std::vector<std::string> stop_strings(const Template& chat) { return {std::string(chat.stop)}; }

}  // namespace llava::text
