// Llama's tokenizer in a folder of its own, and pictures without pixels, for tests of the encoder.
#pragma once

#include "llava/base/files.h"
#include "llava/input/encoder.h"
#include "support/temporary_folder.h"

#include <filesystem>

namespace llava::input {

inline text::Tokenizer llama(text::Spacing spacing = text::Spacing::first_segment,
                             const std::string& added_tokens = "") {
  const support::TemporaryFolder folder;
  std::filesystem::copy_file(LLAVA_GOLDEN "/../text/tokenizer.model", folder / "tokenizer.model");
  if (!added_tokens.empty()) folder.write("added_tokens.json", added_tokens);
  return text::Tokenizer::load(folder.path(), {.spacing = spacing});
}

inline Encoder vicuna(EncoderConfig config = {}, const std::string& added_tokens = "") {
  return {llama(text::Spacing::first_segment, added_tokens), text::find_template("v1"), config};
}

/// A picture that is only counted.
inline std::vector<Picture> pictures(std::size_t count, std::int64_t rows = 576) {
  return std::vector<Picture>(count, Picture{.shape = {}, .rows = rows, .side = 336, .pixels = {}});
}

/// Turns that alternate, the user's first.
inline text::Conversation talk(const std::vector<std::string>& texts) {
  text::Conversation conversation;
  for (std::size_t i = 0; i < texts.size(); ++i)
    conversation.messages.push_back({i % 2 ? text::Role::assistant : text::Role::user, texts[i]});
  return conversation;
}

}  // namespace llava::input
