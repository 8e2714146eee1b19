// Training sets as LLaVA and LLaVA-NeXT keep them: LLaVA JSON (one list), JSON lines, and mixture
// files that name several with a sampling strategy each. A set is indexed once (24 bytes a sample)
// and its samples are read one at a time, so memory does not grow with the size of the texts.
// Source: haotian-liu/LLaVA 1.2.2 and LLaVA-VL/LLaVA-NeXT, train.py, LazySupervisedDataset.
#pragma once

#include "llava/base/files.h"
#include "llava/text/conversation.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llava::data {

/// One sample as its file has it, checked: turns alternate, begin with the user, end with the
/// assistant and are not empty.
struct Record {
  std::string id;                   // as the file has it, or its number in the file
  std::string where;                // "mix.json:17: sample \"000123\"", for messages
  std::vector<std::string> images;  // names below the image folder
  std::string video;                // name below the video folder, "" when there is none
  text::Conversation conversation;
};

/// Where a sample stands: the line it begins on and its number in the file, both from 1.
struct Place {
  std::string file;
  std::int64_t line = 0, number = 0;
};

/// A sample from its JSON text.  Throws Error(data) naming file, line, sample and what is wrong.
Record parse_record(std::string_view json, const Place& place);

/// The id of a sample that may be broken: its "id" where that can be read, else its number.
std::string sample_id(std::string_view json, const Place& place);

/// Immutable after construction; any number of threads may use one.
class Records {
 public:
  /// `data_path` is a list of files separated by commas, each one of
  ///   set.json             a list of samples, or one sample a line
  ///   base{a,b}.json       basea.json and baseb.json
  ///   mixture.yaml|.json   {datasets: [{json_path, sampling_strategy}]}, strategies all, first:N,
  ///                        end:N and random:N with N a count or a percentage ("12%")
  /// `seed` is for random:N.  Throws Error(data) naming file and line if a file's outline is
  /// broken; what is inside a sample is looked at when it is read.
  explicit Records(const std::string& data_path, std::uint64_t seed = 42);

  std::int64_t size() const { return static_cast<std::int64_t>(spans_.size()); }

  /// Throws Error(data) if the sample is broken.
  Record at(std::int64_t index) const;

  std::string json(std::int64_t index) const;  // the sample's text as it stands in its file
  Place place(std::int64_t index) const;

  /// All samples but `count` random ones, and those; each in the set's order. They share its files.
  /// Throws Error(usage) unless both parts have samples.
  std::pair<Records, Records> hold_out(std::int64_t count, std::uint64_t seed) const;

  /// Changes when any byte of the files or the selection of samples does.
  std::uint64_t fingerprint() const { return fingerprint_; }

 private:
  struct File;

  /// Where a sample's text lies.
  struct Span {
    std::uint64_t file : 16;
    std::uint64_t offset : 48;
    std::uint32_t size = 0;
    std::uint32_t line = 0;
    std::uint32_t number = 0;  // in the file, from 0
  };

  Records() = default;

  void add(const std::string& path, const std::string& strategy, std::uint64_t seed);

  std::vector<std::shared_ptr<const File>> files_;
  std::vector<Span> spans_;
  std::uint64_t fingerprint_ = 0;
};

/// Writes samples as one LLaVA JSON list, which appears under its name at commit() or not at all.
/// Throws Error(usage) if the place cannot be written, Error(failure) if the disk is full.
class SampleWriter {
 public:
  explicit SampleWriter(const std::string& path) : file_(path) {}

  void add(std::string_view json);
  void commit();

 private:
  AtomicFile file_;
  std::string text_;  // not yet in the file
  bool empty_ = true;
};

}  // namespace llava::data
