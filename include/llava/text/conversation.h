// Messages, the table of chat templates, and the prompt they render to, byte for byte as the
// reference does it, with the parts that are learned and the parts a person wrote.
// Source: haotian-liu/LLaVA 1.2.2 and LLaVA-VL/LLaVA-NeXT, conversation.py and train.py.
#pragma once

#include "llava/text/tokenizer.h"

#include <string>
#include <string_view>
#include <vector>

namespace llava::text {

/// Where a picture goes in a message's text.
inline constexpr std::string_view kImageMark = "<image>";

enum class Role { user, assistant };

struct Message {
  Role role = Role::user;
  std::string text;
};

/// Turns in order. The system text is the template's unless given.
struct Conversation {
  std::vector<Message> messages;
  std::optional<std::string> system;
};

/// A rendered conversation.
struct Prompt {
  std::string text;
  std::vector<Range> learned;  // bytes whose tokens are trained on
  std::vector<Range> literal;  // bytes of people's words, where no control token is recognised
};

/// One chat template; rows of a table, found by name.
struct Template;

/// A template by its name or alias ("v1", "vicuna_v1", "llava_v0", "plain" ...).
/// Throws Error(usage) naming the nearest one.
const Template& find_template(const std::string& name);
std::string_view template_name(const Template& chat);
std::vector<std::string> template_names();

/// The whole conversation, every turn answered, with what is learned from it.
/// Throws Error(data) if the turns do not suit the template.
Prompt render(const Template& chat, const Conversation& conversation);

/// The conversation up to where the assistant speaks next. With `turn_from` > 0 only the text that
/// follows message `turn_from - 1` is returned, so that a kept cache pays for the new turn alone;
/// all returns together are the whole.
Prompt render_open(const Template& chat, const Conversation& conversation,
                   std::size_t turn_from = 0);

/// Texts that end the assistant's turn besides the tokenizer's EOS ("###", "<|im_end|>" ...).
std::vector<std::string> stop_strings(const Template& chat);

}  // namespace llava::text
