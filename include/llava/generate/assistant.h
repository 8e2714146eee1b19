// A loaded model with all it takes to answer: tokenizer, template, preprocessing, what ends an
// answer, and the features of the pictures it saw last.
#pragma once

#include "llava/input/encoder.h"
#include "llava/model/device_step.h"
#include "llava/model/pretrained.h"
#include "llava/model/token_step.h"

#include <list>
#include <string>
#include <vector>

namespace llava::generate {

/// Features of the pictures seen last, by their pixels, so that a picture asked about again, in
/// this turn or another conversation, does not go through the vision tower twice.
class FeatureCache {
 public:
  explicit FeatureCache(std::size_t capacity = 16) : capacity_(capacity) {}

  /// [P, D] as embed() splices them, or an undefined tensor.
  torch::Tensor find(const input::Picture& picture);
  void add(const input::Picture& picture, const torch::Tensor& features);

 private:
  struct Entry {
    std::uint64_t hash;
    input::Picture picture;
    torch::Tensor features;
  };
  std::list<Entry> entries_;  // used last in front
  std::size_t capacity_;      // pictures
};

/// Milliseconds and tokens of an answer, as `run --json` gives them.
struct Timings {
  double image_ms = 0;    // reading and preprocessing pictures
  double vision_ms = 0;   // tower and projector
  double prefill_ms = 0;  // the prompt through the decoder
  double decode_ms = 0;   // a token at a time
  std::int64_t prefill_tokens = 0, decode_tokens = 0;
};

struct AssistantOptions {
  model::LoadOptions load = {};
  bool choose_dtype = true;    // with no dtype given: what suits the device, see auto_dtype()
  std::string conv_mode = {};  // template name; "": the folder's, else one that suits the decoder
  std::int64_t context = 0;    // tokens a conversation may have; 0: what the model allows
  media::ImageOptions image = {};
  std::int64_t bits = 16;  // of the decoder's weights: 16 (as loaded), 8 or 4
};

/// Not for use by two threads at once, but read_picture() and the encoder are.
struct Assistant {
  /// Throws Error(usage) for an unknown template, Error(data) if the tokenizer does not suit.
  Assistant(model::Llava model, text::Tokenizer tokenizer, const std::string& conv_mode = "");

  model::Llava model;
  input::Encoder encoder;
  std::vector<std::int64_t> stop_ids;     // tokens that end an answer
  std::vector<std::string> stop_strings;  // texts that end it, where they are no token
  std::int64_t context;                   // tokens, pictures spliced in
  std::string name;                       // model_id of answer files
  FeatureCache features;
  media::ImageOptions image;          // how pictures are read
  bool rows_are_independent = false;  // a product's rows do not depend on the rows beside them
  std::shared_ptr<nn::TokenStep> token_step;  // decode without tensors; nullptr where not possible
  std::shared_ptr<model::DeviceStep> device_step;  // decode on a GPU, or nullptr

  const text::Tokenizer& tokenizer() const { return encoder.tokenizer(); }
};

/// Loads a model folder.  Throws Error as model::load_pretrained and text::Tokenizer::load.
Assistant load_assistant(const std::string& folder, const AssistantOptions& options = {});

/// Lays the decoder's weights out for products on this CPU where that is faster than LibTorch's,
/// and keeps them in 8 or 4 bits where asked: see nn/packed.h. Under 4 bits the output head has 8.
/// Such a model only answers. Returns whether every product of decode has rows that do not depend
/// on those beside them.  Throws Error(usage) for other numbers of bits.
bool pack_decoder(model::Llava& model, std::int64_t bits);

/// The same of the vision tower and the projector, in bfloat16. The first picture sees to it: a
/// start with text alone does without.
void pack_tower(model::Llava& model);

/// Both.
bool pack_for_answers(model::Llava& model, std::int64_t bits);

/// The dtype for a folder on a device when none is asked for. Nothing means: as the files are. On a
/// CPU half-precision files are run in bfloat16 where the CPU multiplies it (AVX512-BF16), else in
/// float32; float32 files stay as they are everywhere.
std::optional<torch::ScalarType> auto_dtype(const std::string& torch_dtype, torch::Device device);

/// The last part of a path; "parent_checkpoint-N" for a checkpoint, as in the reference.
/// Source: haotian-liu/LLaVA 1.2.2, mm_utils.py, get_model_name_from_path.
std::string model_name(const std::string& folder);

/// A file as the encoder takes it.  Throws Error(data) naming the file.
input::Picture read_picture(const Assistant& assistant, const std::string& path);
input::Picture read_video(const Assistant& assistant, const std::string& path, std::int64_t frames);

/// `text` with as many marks as there are pictures: as it stands, or with one "<image>\n" ("<video>
/// \n") per picture in front when it has none.  Throws Error(usage) for any other number.
std::string with_marks(const std::string& text, const std::vector<input::Picture>& pictures);

/// Throws Error(capacity), with the arithmetic of text and picture tokens, unless `example` after
/// `used` tokens leaves room for `room` more.
void expect_fits(const Assistant& assistant, const input::Example& example, std::int64_t used,
                 std::int64_t room);

/// The decoder's input [T, D], pictures spliced in. Pictures go through the vision tower one by
/// one, so that an answer does not depend on other pictures of a batch.
torch::Tensor embed(Assistant& assistant, const input::Example& example,
                    Timings* timings = nullptr);

}  // namespace llava::generate
