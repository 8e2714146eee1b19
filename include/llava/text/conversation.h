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

/// A rendered conversation. Ranges are sorted and do not overlap.
struct Prompt {
  std::string text;
  std::vector<Range> learned;  // bytes whose tokens are trained on, by is_learned
  std::vector<Range> literal;  // bytes of people's words, where no control token is recognised
};

/// Whether a token is learned: its bytes lie inside one range. A token of no bytes (a dummy prefix)
/// goes with the byte after it.
bool is_learned(Range token, const std::vector<Range>& learned);

/// One chat template; rows of a table, found by name.
struct Template;

/// A template by its name or alias ("v1", "vicuna_v1", "llava_v0", "plain" ...).
/// Throws Error(usage) naming the nearest one.
const Template& find_template(const std::string& name);
std::string_view template_name(const Template& chat);
std::vector<std::string> template_names();

/// The whole conversation with what is learned from it, as the reference's training renders it. A
/// leading assistant turn is dropped, and a question without an answer is not learned, as there.
/// Throws Error(data) if the turns do not alternate or do not suit the template.
///
/// Where the reference masks a sample wholly or shifts its labels, because it measures rounds by
/// tokenizing them again (an answer that holds "</s>" or " ASSISTANT: ", an empty answer, chatml in
/// LLaVA 1.2.2, every turn but the first of v0), the labels here are the ones it means. qwen_2_5
/// trains with its own system text; the reference trains it with qwen_1_5's, then asks with its
/// own.
Prompt render(const Template& chat, const Conversation& conversation);

/// The conversation up to where the assistant speaks next (or, after an assistant's turn, to its
/// end). With `turn_from` > 0, message turn_from - 1 is the assistant's and only what follows its
/// words is returned, beginning with the token or text that ends its turn ("</s>", "###"), so that
/// a kept cache pays for the new turn alone: what this returned at each turn, with the assistant's
/// words between as the model speaks them (with the space before them, in most templates), is the
/// whole. Throws Error(data) if the turns do not alternate or do not suit the template.
Prompt render_open(const Template& chat, const Conversation& conversation,
                   std::size_t turn_from = 0);

/// Texts that end the assistant's turn besides the tokenizer's EOS ("###", "<|im_end|>" ...). One
/// that is a token of the tokenizer (Tokenizer::special) ends it by its id.
std::vector<std::string> stop_strings(const Template& chat);

/// How the reference moves <image> marks in a training sample that has pictures.
enum class Placement {
  first,     // LLaVA: every turn's marks become one "<image>\n" at its beginning
  keep_many  // LLaVA-NeXT: only a lone mark that does not stand first is moved
};

/// The conversation with its marks where training has them; <Image><image></Image> for templates
/// with mmtag. NeXT also deletes the words QA_GT_caption_based_noisy.
/// Source: preprocess_multimodal of either train.py.
Conversation place_images(Conversation conversation, const Template& chat, Placement placement);

}  // namespace llava::text
