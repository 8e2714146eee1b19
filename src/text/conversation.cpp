#include "llava/text/conversation.h"

#include "unicode.h"

#include "llava/base/check.h"
#include "llava/base/config.h"

#include <algorithm>
#include <array>

namespace llava::text {

/// What is trained on.
enum class Learns {
  answers,     // the assistant's words and what ends them
  caption,     // plain: the picture, then the answer and a newline, nothing else
  chatml,      // Qwen: whole assistant turns, and its markers and newlines everywhere
  llama_3,     // the same with Llama-3's markers
  hash_marks,  // v0: whole assistant turns and "###"; trained on another text than it is asked with
};

/// The pieces around each turn. A turn is BEGIN LEAD words TAIL END; LEAD and TAIL are what the
/// assistant itself says, and an empty message is its BEGIN alone.
struct Template {
  std::string_view name;
  std::array<std::string_view, 3> aliases{};
  std::string_view system_begin{}, system{}, system_end{};
  std::string_view user{}, user_lead{}, user_end{};
  std::string_view assistant{}, assistant_lead{}, assistant_tail{}, assistant_end{};
  std::string_view between{};  // before every user turn but the first
  std::string_view stop{};     // ends the assistant's turn
  Learns learns = Learns::answers;
  bool has_system = true;             // else there is no place for a system text
  bool system_in_first_turn = false;  // after the first user BEGIN, when there is one
  bool has_example = false;           // a dialogue about energy comes before the first turn
  bool mmtag = false;                 // pictures stand inside <Image></Image>
  bool trims = false;                 // words lose the white space around them
  bool always_open = false;           // the assistant is always asked to speak
};

namespace {

// ── Texts ────────────────────────────────────────────────────────────────────────────────────────

constexpr std::string_view kHuman =
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions.";
constexpr std::string_view kUser =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.";
constexpr std::string_view kMmtag =
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of "
    "tasks using natural language.The visual content will be provided with the following format: "
    "<Image>visual content</Image>.";
constexpr std::string_view kLlama2 =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, "
    "explain why instead of answering something not correct. If you don't know the answer to a "
    "question, please don't share false information.";
constexpr std::string_view kVision =
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content "
    "that the user provides, and assist the user with a variety of tasks using natural language.";
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

constexpr std::string_view kExampleQuestion =
    "What are the key differences between renewable and non-renewable energy sources?";
constexpr std::string_view kExampleAnswer =
    "Renewable energy sources are those that can be replenished naturally in a relatively short "
    "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
    "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, "
    "and "
    "natural gas. Here are some key differences between renewable and non-renewable energy "
    "sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
    "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, "
    "and "
    "other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically "
    "have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n";

// ── Families: the pieces that several templates share ────────────────────────────────────────────

constexpr Template hash_marks(std::string_view name, std::string_view system) {
  return {.name = name,
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

constexpr Template vicuna(std::string_view name, std::string_view system) {
  return {.name = name,
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

constexpr Template llama_2(std::string_view name, std::string_view system) {
  return {.name = name,
          .system_begin = "<<SYS>>\n",
          .system = system,
          .system_end = "\n<</SYS>>\n\n",
          .user = "[INST] ",
          .user_end = " [/INST]",
          .assistant_lead = " ",
          .assistant_tail = " ",
          .assistant_end = "</s>",
          .between = "<s>",
          .stop = "</s>",
          .system_in_first_turn = true};
}

constexpr Template chatml(std::string_view name, std::string_view system) {
  return {.name = name,
          .system_begin = "<|im_start|>system\n",
          .system = system,
          .system_end = "<|im_end|>",
          .user = "<|im_start|>user\n",
          .user_end = "<|im_end|>",
          .assistant = "<|im_start|>assistant\n",
          .assistant_end = "<|im_end|>",
          .stop = "<|im_end|>"};
}

constexpr Template qwen(std::string_view name, std::string_view system) {
  auto chat = chatml(name, system);
  chat.system_end = chat.user_end = chat.assistant_end = "<|im_end|>\n";
  chat.learns = Learns::chatml;
  return chat;
}

constexpr Template named(Template chat, std::array<std::string_view, 3> aliases) {
  chat.aliases = aliases;
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

constexpr Template mistral_instruct() {
  auto chat = llama_2("mistral_instruct", "");
  chat.between = "";
  return chat;
}

constexpr Template kTemplates[] = {
    named(vicuna("vicuna_v1", kUser), {"v1"}),
    vicuna("llava_v1", kHuman),
    named(with_mmtag(vicuna("v1_mmtag", kMmtag)), {"llava_v1_mmtag"}),
    {.name = "plain",
     .aliases = {"v0_plain"},
     .user_end = "\n",
     .assistant_end = "\n",
     .stop = "\n",
     .learns = Learns::caption,
     .has_system = false},
    named(with_example(hash_marks("v0", kHuman)), {"default"}),
    hash_marks("llava_v0", kHuman),
    named(with_mmtag(hash_marks("v0_mmtag", kMmtag)), {"llava_v0_mmtag"}),
    llama_2("llama_2", kLlama2),
    llama_2("llava_llama_2", kVision),
    llama_2("llava_llama_2_simple", kSimple),
    with_mmtag(llama_2("llava_llama_2_mmtag", kLlama2Mmtag)),
    named(mistral_instruct(), {"llava_mistral_instruct"}),
    chatml("mpt", kMpt),
    named(chatml("chatml_direct", "Answer the questions."), {"mistral_direct"}),
    chatml("mistral_orca", kOrca),
    {.name = "mistral_zephyr",
     .system_begin = "<|system|>\n",
     .system = "You are a helpful AI assistant.",
     .system_end = "</s>",
     .user = "<|user|>\n",
     .user_end = "</s>",
     .assistant = "<|assistant|>\n",
     .assistant_end = "</s>",
     .stop = "</s>"},
    named(qwen("qwen_1_5", "You are a helpful assistant."), {"qwen_2"}),
    qwen("qwen_2_5", kQwen25),
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

/// The text that v0 is trained on: "\n\n" after the system text, "### " before each turn, a newline
/// after it, no example.  Source: LLaVA 1.2.2, train.py, _add_speaker_and_signal.
Template hash_mark_training(Template chat) {
  chat.system_end = "\n\n";
  chat.user = "### Human:";
  chat.assistant = "### Assistant:";
  chat.user_end = chat.assistant_end = "\n";
  chat.has_example = false;
  return chat;
}

// ── Rendering ────────────────────────────────────────────────────────────────────────────────────

/// Appends pieces to a prompt and remembers which are learned and which are a person's.
struct Writer {
  Prompt prompt;
  bool learning = false;  // from here on

  void put(std::string_view text) {
    const std::size_t begin = prompt.text.size();
    prompt.text += text;
    if (!learning || text.empty()) return;
    auto& learned = prompt.learned;
    if (!learned.empty() && learned.back().end == begin) {
      learned.back().end = prompt.text.size();
    } else {
      learned.push_back({begin, prompt.text.size()});
    }
  }

  void quote(std::string_view text) {
    if (!text.empty()) {
      prompt.literal.push_back({prompt.text.size(), prompt.text.size() + text.size()});
    }
    put(text);
  }
};

void write_system(const Template& chat, const Conversation& conversation, Writer& out) {
  const bool given = conversation.system.has_value();
  const std::string_view system = given ? *conversation.system : chat.system;
  if (!chat.has_system) {
    expect(!given || system.empty(), Fault::data, "template ", chat.name,
           " has no place for a system text; leave it out or choose another template");
    return;
  }
  if (system.empty() && (chat.system_in_first_turn || chat.learns == Learns::chatml)) return;
  out.put(chat.system_begin);
  if (given) {
    out.quote(system);
  } else {
    out.put(system);
  }
  out.put(chat.system_end);
}

void write_example(const Template& chat, Writer& out) {
  for (const auto piece : {chat.user, chat.user_lead, kExampleQuestion, chat.user_end,
                           chat.assistant, chat.assistant_lead, kExampleAnswer, chat.assistant_end})
    out.put(piece);
}

/// The turns from `first` on. Returns where the words of message `marked` end.
std::size_t write_turns(const Template& chat, const Conversation& conversation, std::size_t first,
                        std::size_t marked, Writer& out) {
  const auto& messages = conversation.messages;
  const bool whole_turns = chat.learns != Learns::answers;
  std::size_t mark = 0;
  if (!chat.system_in_first_turn) write_system(chat, conversation, out);
  if (chat.has_example) write_example(chat, out);
  for (std::size_t i = first; i < messages.size(); ++i) {
    const bool user = messages[i].role == Role::user;
    const std::string_view words = chat.trims ? strip(messages[i].text) : messages[i].text;
    out.learning = !user && whole_turns;
    if (user && i > first) out.put(chat.between);
    if (user && chat.learns == Learns::hash_marks && chat.user.starts_with("###")) {
      out.learning = true;
      out.put("###");
      out.learning = false;
      out.put(chat.user.substr(3));
    } else {
      out.put(user ? chat.user : chat.assistant);
    }
    if (user && i == first && chat.system_in_first_turn) write_system(chat, conversation, out);
    if (!words.empty() || chat.trims) {
      out.learning = !user;
      out.put(user ? chat.user_lead : chat.assistant_lead);
      out.quote(words);
      out.put(user ? "" : chat.assistant_tail);
      if (i == marked) mark = out.prompt.text.size();
      out.put(user ? chat.user_end : chat.assistant_end);
    } else if (i == marked) {
      mark = out.prompt.text.size();
    }
  }
  out.learning = false;
  return mark;
}

/// Index of the first turn to render, after checking that user and assistant take turns.
std::size_t check_turns(const Template& chat, const Conversation& conversation) {
  const auto& messages = conversation.messages;
  const std::size_t first = !messages.empty() && messages[0].role == Role::assistant;
  expect(messages.size() > first, Fault::data,
         "the conversation has no user turn; it needs one to begin with");
  for (std::size_t i = first; i < messages.size(); ++i) {
    const bool user = messages[i].role == Role::user;
    expect(user == ((i - first) % 2 == 0), Fault::data, "turn ", i + 1, " is ",
           user ? "the user's" : "the assistant's", " again; user and assistant must alternate");
  }
  expect(!chat.system_in_first_turn || !messages[first].text.empty(), Fault::data,
         "the first user turn is empty; template ", chat.name, " needs words there");
  return first;
}

Prompt render_caption(const Conversation& conversation) {
  const auto& messages = conversation.messages;
  const bool pair =
      messages.size() == 2 && messages[0].role == Role::user && messages[1].role == Role::assistant;
  expect(pair, Fault::data, "template plain takes one user turn and one assistant turn, found ",
         messages.size(), " turns; choose another --version for conversations");
  expect(messages[0].text.find(kImageMark) != std::string::npos, Fault::data,
         "template plain needs ", kImageMark,
         " in the user turn; choose another --version for text");
  Writer out;
  out.put(kImageMark);  // the user's words are dropped
  out.learning = true;
  out.quote(messages[1].text);
  out.put("\n");
  return std::move(out.prompt);
}

/// The markers that the reference trains on wherever they stand: those control tokens outside a
/// person's words, and the newlines that are one token, anywhere.
/// Source: LLaVA-NeXT, train.py, preprocess_qwen and preprocess_llama3 (unmask_tokens_idx).
void learn_markers(Learns learns, Prompt& prompt) {
  constexpr std::string_view kQwen[] = {"<|im_start|>", "<|im_end|>"};
  constexpr std::string_view kLlama3[] = {"<|begin_of_text|>", "<|start_header_id|>",
                                          "<|end_header_id|>", "<|eot_id|>"};
  const bool llama_3 = learns == Learns::llama_3;
  const std::size_t newlines = llama_3 ? 2 : 1;  // the ones of "\n\n", 271, or "\n", 198
  const std::string_view text = prompt.text;
  std::vector<Range> learned;
  std::size_t turn = 0, quote = 0;  // next ranges of prompt.learned, prompt.literal
  for (std::size_t at = 0; at < text.size();) {
    if (turn < prompt.learned.size() && prompt.learned[turn].begin == at) {
      learned.push_back(prompt.learned[turn]);
      at = prompt.learned[turn++].end;
      continue;
    }
    while (quote < prompt.literal.size() && prompt.literal[quote].end <= at) ++quote;
    const bool quoted = quote < prompt.literal.size() && prompt.literal[quote].begin <= at;
    std::size_t length = 0;
    if (text[at] == '\n') {
      const auto run = std::min(text.find_first_not_of('\n', at), text.size()) - at;
      if (!llama_3 || run == newlines) {
        length = newlines;
      } else {
        at += run;
        continue;
      }
    } else if (!quoted) {
      for (const auto marker : kQwen) {
        if (!llama_3 && text.substr(at).starts_with(marker)) length = marker.size();
      }
      for (const auto marker : kLlama3) {
        if (llama_3 && text.substr(at).starts_with(marker)) length = marker.size();
      }
    }
    if (length) learned.push_back({at, at + length});
    at += std::max<std::size_t>(length, 1);
  }
  prompt.learned = std::move(learned);
}

/// What is left of the ranges after the first `from` bytes are cut off.
std::vector<Range> cut(const std::vector<Range>& ranges, std::size_t from) {
  std::vector<Range> rest;
  for (const auto& range : ranges) {
    if (range.end > from) rest.push_back({std::max(range.begin, from) - from, range.end - from});
  }
  return rest;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

std::size_t count_of(std::string_view text, std::string_view what) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++count;
  return count;
}

}  // namespace

bool is_learned(Range token, const std::vector<Range>& learned) {
  // The last range that begins at or before the token.
  auto range = std::upper_bound(learned.begin(), learned.end(), token.begin,
                                [](std::size_t at, const Range& r) { return at < r.begin; });
  if (range == learned.begin()) return false;
  --range;
  return token.end <= range->end && token.begin < range->end;
}

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

Prompt render(const Template& chat, const Conversation& conversation) {
  if (chat.learns == Learns::caption) return render_caption(conversation);
  const auto first = check_turns(chat, conversation);
  const bool hash = chat.learns == Learns::hash_marks;
  const Template training = hash ? hash_mark_training(chat) : chat;
  Writer out;
  write_turns(training, conversation, first, conversation.messages.size(), out);
  if (hash) {
    out.learning = true;
    out.put("### ");
  }
  if (chat.learns == Learns::chatml || chat.learns == Learns::llama_3) {
    learn_markers(chat.learns, out.prompt);
  }
  return std::move(out.prompt);
}

Prompt render_open(const Template& chat, const Conversation& conversation, std::size_t turn_from) {
  const auto& messages = conversation.messages;
  expect(check_turns(chat, conversation) == 0, Fault::data,
         "the conversation begins with the assistant's turn; it must begin with the user's");
  expect(chat.learns != Learns::caption || messages.size() == 1, Fault::data,
         "template plain has no second turn; it serves Stage 1 alone");
  expect(turn_from == 0 || (turn_from < messages.size() && turn_from % 2 == 0), Fault::data,
         "turn ", turn_from, " of ", messages.size(), " does not end with the assistant's words");
  Writer out;
  const auto mark = write_turns(chat, conversation, 0, turn_from - 1, out);
  if (messages.back().role == Role::user || chat.always_open) out.put(chat.assistant);
  auto& prompt = out.prompt;
  prompt.learned.clear();
  if (turn_from > 0) {
    prompt.text.erase(0, mark);
    prompt.literal = cut(prompt.literal, mark);
  }
  return std::move(prompt);
}

std::vector<std::string> stop_strings(const Template& chat) { return {std::string(chat.stop)}; }

Conversation place_images(Conversation conversation, const Template& chat, Placement placement) {
  for (auto& message : conversation.messages) {
    auto& text = message.text;
    const auto marks = count_of(text, kImageMark);
    const bool moves = placement == Placement::first
                           ? marks > 0
                           : marks == 1 && !std::string_view(text).starts_with(kImageMark);
    if (moves) {
      replace_all(text, kImageMark, "");
      text = strip(std::string(kImageMark) + "\n" + std::string(strip(text)));
      if (chat.mmtag) replace_all(text, kImageMark, "<Image><image></Image>");
    }
    if (placement == Placement::keep_many) replace_all(text, "QA_GT_caption_based_noisy", "");
  }
  return conversation;
}

}  // namespace llava::text
