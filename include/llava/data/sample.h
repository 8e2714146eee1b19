// Record + its files -> Example: the one way from a training set to model input, for the loader,
// the checks and `data show` alike.
#pragma once

#include "llava/data/records.h"
#include "llava/input/encoder.h"

#include <string_view>
#include <vector>

namespace llava::data {

/// Where a set's pictures are and how they are read.
struct MediaConfig {
  std::string image_folder{};  // "" is the working folder
  std::string video_folder{};  // "": the image folder
  media::ImageOptions image{};
  std::int64_t video_frames = 0;  // at most this many of a video; 0: as media::load_video does
  bool pad_groups = true;  // several pictures of a sample: each padded, one tile (LLaVA-NeXT)
};

/// The path of a record's picture or video.  Throws Error(data) if the name leads outside its
/// folder.
std::string image_path(const Record& record, const std::string& name, const MediaConfig& media);
std::string video_path(const Record& record, const MediaConfig& media);

/// Size and format by the file's first bytes, or by all of them where they do not tell.
media::ImageHeader read_image_header(const std::string& path, const media::ImageOptions& options);

/// A record as the model takes it.  Throws Error(data) naming the sample and what is wrong.
input::Example load_example(const Record& record, const input::Encoder& encoder,
                            const MediaConfig& media);

/// The same without pixels, from the headers of pictures and the packets of videos, none of which
/// is decoded: for counting and showing tokens.
input::Example measure_example(const Record& record, const input::Encoder& encoder,
                               const MediaConfig& media);

/// The conversation with its marks where training has them: LLaVA's placement for one picture,
/// LLaVA-NeXT's for several. A record without pictures has no marks and is returned as it is.
text::Conversation placed(const Record& record, const text::Template& chat);

/// Words as Python's str.split() counts them.
std::int64_t count_words(std::string_view text);

}  // namespace llava::data
