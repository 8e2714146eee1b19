// What a training set holds, what of it is broken, and which tokens are learned: for `llava data`.
#pragma once

#include "llava/base/config.h"
#include "llava/data/sample.h"

#include <functional>
#include <string>

namespace llava::data {

struct ReportConfig {
  MediaConfig media;
  bool decode = false;          // decode every picture whole, not only its header
  std::int64_t max_tokens = 0;  // longer samples are bad (with an encoder); 0: no limit
  std::int64_t threads = 1;
};

/// A sample that cannot be trained on.
struct Problem {
  std::string id;
  std::string file;  // of the training set
  std::int64_t line = 0;
  std::string why;  // the whole sentence, with file, line and sample
};

struct CheckResult {
  std::int64_t samples = 0, good = 0;
};

/// Reads every sample: its structure, that marks and pictures match, and that the pictures' files
/// are there and begin as pictures. With an encoder also its length and that something is learned.
/// Calls one of the two for each sample, in order, on the calling thread. Memory does not grow with
/// the set.
CheckResult check(const Records& records, const input::Encoder* encoder, const ReportConfig& config,
                  const std::function<void(const Problem&)>& on_bad,
                  const std::function<void(std::int64_t index)>& on_good);

/// Counts of samples, turns, words and sources; with an encoder also of tokens, tiles and what is
/// learned. Broken samples are counted as such and nowhere else.
Json stats(const Records& records, const input::Encoder* encoder, const ReportConfig& config);

/// A sample as the model sees it: {"id", "ids", "labels", "pieces", "images": [{"file", "width",
/// "height", "tiles", "tokens"}]}.  Throws Error(usage) if there is no such sample.
Json show(const Records& records, std::int64_t index, const input::Encoder& encoder,
          const ReportConfig& config);

/// What show() returned, for people: the prompt with what is learned marked, by colour in a
/// terminal and by «» elsewhere, control characters made visible.
std::string show_text(const Json& shown, const input::Encoder& encoder, bool color);

}  // namespace llava::data
