#include "llava/text/conversation.h"

#include "templates.h"
#include "unicode.h"

#include "llava/base/check.h"

#include <algorithm>
#include <span>

namespace llava::text {
namespace {

/// The text that v0 is trained on: "\n\n" after the system text, "### " before each turn, a newline
/// after it, no example.  Source: LLaVA 1.2.2, train.py, _add_speaker_and_signal.
Template hash_mark_training(Template chat) {
  chat.system_end = "\n\n";
  chat.mark = "###";
  chat.user = " Human:";
  chat.assistant = " Assistant:";
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
  const bool whole_turns = chat.learns != Learns::answers;
  std::size_t words_end = 0;
  if (!chat.system_in_first_turn) write_system(chat, conversation, out);
  if (chat.has_example) write_example(chat, out);
  for (std::size_t i = first; i < conversation.messages.size(); ++i) {
    const auto& message = conversation.messages[i];
    const bool user = message.role == Role::user;
    const std::string_view words = chat.trims ? strip(message.text) : message.text;
    const bool empty = words.empty() && !chat.trims;
    out.learning = false;
    if (user && i > first) out.put(chat.between);
    out.learning = true;
    out.put(chat.mark);
    out.learning = !user && whole_turns;
    out.put(user ? chat.user : chat.assistant);
    if (user && i == first && chat.system_in_first_turn) write_system(chat, conversation, out);
    out.learning = !user;
    if (!empty) out.put(user ? chat.user_lead : chat.assistant_lead);
    out.quote(words);
    if (!empty && !user) out.put(chat.assistant_tail);
    if (i == marked) words_end = out.prompt.text.size();
    if (!empty) out.put(user ? chat.user_end : chat.assistant_end);
  }
  out.learning = false;
  return words_end;
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

/// The length of a marker that the reference trains on wherever it stands, or 0: control tokens
/// outside a person's words, and the newlines that are one token, anywhere.
/// Source: LLaVA-NeXT, train.py, preprocess_qwen and preprocess_llama3 (unmask_tokens_idx).
std::size_t marker_at(Learns learns, std::string_view text, std::size_t at, bool quoted) {
  constexpr std::string_view kChatml[] = {"<|im_start|>", "<|im_end|>"};
  constexpr std::string_view kLlama3[] = {"<|begin_of_text|>", "<|start_header_id|>",
                                          "<|end_header_id|>", "<|eot_id|>"};
  const bool llama_3 = learns == Learns::llama_3;
  if (text[at] == '\n') {
    if (!llama_3) return 1;  // id 198
    const bool pair = text.substr(at).starts_with("\n\n") && (at == 0 || text[at - 1] != '\n');
    return pair && !text.substr(at).starts_with("\n\n\n") ? 2 : 0;  // id 271
  }
  if (quoted || text[at] != '<') return 0;
  const auto markers = llama_3 ? std::span<const std::string_view>(kLlama3) : kChatml;
  for (const auto marker : markers) {
    if (text.substr(at).starts_with(marker)) return marker.size();
  }
  return 0;
}

void learn_markers(Learns learns, Prompt& prompt) {
  std::vector<Range> learned;
  std::size_t turn = 0, quote = 0;  // next ranges of prompt.learned, prompt.literal
  for (std::size_t at = 0; at < prompt.text.size();) {
    if (turn < prompt.learned.size() && prompt.learned[turn].begin == at) {
      learned.push_back(prompt.learned[turn]);
      at = prompt.learned[turn++].end;
      continue;
    }
    while (quote < prompt.literal.size() && prompt.literal[quote].end <= at) ++quote;
    const bool quoted = quote < prompt.literal.size() && prompt.literal[quote].begin <= at;
    const auto length = marker_at(learns, prompt.text, at, quoted);
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
