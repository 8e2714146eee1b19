// TensorBoard's event files, scalars only.
//
//   file    records, one after the other
//   record  uint64 length | uint32 masked CRC-32C of those 8 bytes | data | the same CRC of data
//   data    protobuf Event { double wall_time = 1; int64 step = 2; string file_version = 3;
//           Summary summary = 5; SessionLog session_log = 7; },
//           Summary { repeated Value value = 1; }, Value { string tag = 1; float simple_value = 2;
//           }
//
// Source: tensorflow/tensorflow, core/util/event.proto, core/framework/summary.proto,
// core/lib/io/record_writer.cc and core/lib/hash/crc32c.h (the mask).
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llava::train {

class EventFile {
 public:
  /// A new file in `folder`. What earlier files there say of steps from `first_step` on counts no
  /// more. Throws Error(usage) if it cannot be written.
  EventFile(const std::string& folder, std::int64_t first_step);

  /// Written at once, so that a reader sees it.
  void scalars(std::int64_t step, const std::vector<std::pair<std::string, double>>& values);

 private:
  void record(std::string_view event);

  std::string path_;
  std::ofstream file_;
};

}  // namespace llava::train
