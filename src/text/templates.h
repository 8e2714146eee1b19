// A row of the table of chat templates; private to this folder.
#pragma once

#include "llava/text/conversation.h"

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

/// The pieces around each turn: MARK BEGIN LEAD words TAIL END. LEAD and TAIL are what the
/// assistant itself says; an empty message is its BEGIN alone.
struct Template {
  std::string_view name;
  std::array<std::string_view, 2> aliases{};
  std::string_view system_begin{}, system{}, system_end{};
  std::string_view user{}, user_lead{}, user_end{};
  std::string_view assistant{}, assistant_lead{}, assistant_tail{}, assistant_end{};
  std::string_view between{};  // before every user turn but the first
  std::string_view mark{};     // before every turn, always learned
  std::string_view stop{};     // ends the assistant's turn
  Learns learns = Learns::answers;
  bool has_system = true;             // else there is no place for a system text
  bool system_in_first_turn = false;  // after the first user BEGIN, when there is one
  bool has_example = false;           // a dialogue about energy comes before the first turn
  bool mmtag = false;                 // pictures stand inside <Image></Image>
  bool trims = false;                 // words lose the white space around them
  bool always_open = false;           // the assistant is always asked to speak
};

/// The dialogue of Template::has_example.
extern const std::string_view kExampleQuestion, kExampleAnswer;

}  // namespace llava::text
