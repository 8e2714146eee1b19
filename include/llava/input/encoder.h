// The one path from a conversation to model input, for training, evaluation and chat alike:
// conversation + pictures -> Example. Ids and labels are made together, from one tokenization: a
// token is learned when its bytes lie in what the template says is learned, so nothing is tokenized
// again to find spans, and an answer that holds " ASSISTANT: " or "</s>" stays right.
#pragma once

#include "llava/input/example.h"
#include "llava/text/conversation.h"

#include <optional>

namespace llava::input {

/// Where a video goes in a message's text; kImageMark is understood for it too.
inline constexpr std::string_view kVideoMark = "<video>";

struct EncoderConfig {
  media::TilingConfig tiling;
  media::MergeConfig merge;
  bool image_start_end = false;      // mm_use_im_start_end: <im_start><image><im_end>
  bool parse_user_specials = false;  // a person's "</s>" is the control token, as in the reference
};

/// Immutable; any number of threads may use one. A text given without pictures has no marks: its
/// "<image>" is five ordinary letters in brackets, as in the reference's text-only samples.
class Encoder {
 public:
  /// Throws Error(data) if the tokenizer lacks the tokens that the config needs.
  Encoder(text::Tokenizer tokenizer, const text::Template& chat, EncoderConfig config);

  /// A whole conversation with labels, for training. `pictures` come from picture(), in the order
  /// of their marks.  Throws Error(data) if marks and pictures differ in number.
  Example encode(const text::Conversation& conversation, std::vector<Picture> pictures) const;

  /// The conversation up to where the assistant speaks; labels are all kIgnore. `turn_from` as in
  /// text::render_open; BOS only when it is 0, and `pictures` are those of the text returned.
  Example encode_prompt(const text::Conversation& conversation, std::vector<Picture> pictures,
                        std::size_t turn_from = 0) const;

  /// Ids of a text as it stands (no template), <image> marks split as the reference splits them.
  Example encode_raw(const std::string& text, std::vector<Picture> pictures) const;

  /// Tiles of a picture; `aspect` overrides the config's.
  Picture picture(const media::Image& image, std::optional<media::Aspect> aspect = {}) const;

  /// One tile of each frame. Throws Error(data) if there are none.
  Picture video(const std::vector<media::Image>& frames) const;

  /// What picture() and video() would give, without pixels: for counting tokens.
  Picture measure(std::int64_t width, std::int64_t height,
                  std::optional<media::Aspect> aspect = {}) const;
  Picture measure_video(std::int64_t width, std::int64_t height, std::int64_t frames) const;

  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  const text::Template& chat() const { return *chat_; }
  const EncoderConfig& config() const { return config_; }

 private:
  Example tokens_of(const text::Prompt& prompt, std::vector<Picture> pictures, bool begins) const;
  media::TilingConfig tiling(std::optional<media::Aspect> aspect) const;

  text::Tokenizer tokenizer_;
  const text::Template* chat_;
  EncoderConfig config_;
};

/// Cuts an example after `max_tokens` tokens, counted after splicing, as the reference does; a
/// picture that would be cut through is left out whole.
/// Source: haotian-liu/LLaVA 1.2.2, llava_arch.py, tokenizer_model_max_length.
void truncate(Example& example, std::int64_t max_tokens);

/// Labels that are learned: not kIgnore, and not the first, which nothing predicts.
std::int64_t num_learned(const Example& example);

}  // namespace llava::input
