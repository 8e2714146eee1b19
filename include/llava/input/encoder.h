// The one path from a conversation to model input, for training, evaluation and chat alike:
// conversation + pictures -> Example. Ids and labels are made together, from one tokenization.
#pragma once

#include "llava/input/example.h"
#include "llava/text/conversation.h"

namespace llava::input {

struct EncoderConfig {
  media::TilingConfig tiling;
  media::MergeConfig merge;
  bool image_start_end = false;  // mm_use_im_start_end: <im_start><image><im_end>
  bool parse_user_specials = false;  // let a person's "</s>" be the control token, as the reference does
};

/// Immutable; any number of threads may use one.
class Encoder {
 public:
  Encoder(text::Tokenizer tokenizer, const text::Template& chat, EncoderConfig config);

  /// A whole conversation with labels, for training. `pictures` come from picture(), in the order of
  /// the <image> marks.  Throws Error(data) if marks and pictures differ in number.
  Example encode(const text::Conversation& conversation, std::vector<Picture> pictures) const;

  /// The conversation up to where the assistant speaks; labels are all kIgnore. `turn_from` as in
  /// text::render_open; BOS only when it is 0.
  Example encode_prompt(const text::Conversation& conversation, std::vector<Picture> pictures,
                        std::size_t turn_from = 0) const;

  /// Ids of a text as it stands (no template), <image> marks split as the reference splits them.
  Example encode_raw(const std::string& text, std::vector<Picture> pictures) const;

  Picture picture(const media::Image& image) const;
  Picture video(const std::vector<media::Image>& frames) const;

  /// Shape and rows of a picture of this size, no pixels: for counting tokens.
  Picture measure(std::int64_t width, std::int64_t height) const;

  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  const text::Template& chat() const { return *chat_; }
  const EncoderConfig& config() const { return config_; }

 private:
  Example tokens_of(const text::Prompt& prompt, std::vector<Picture> pictures, bool begins) const;

  text::Tokenizer tokenizer_;
  const text::Template* chat_;
  EncoderConfig config_;
};

}  // namespace llava::input
