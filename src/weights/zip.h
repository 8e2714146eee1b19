// Zip archives whose entries are all stored, not compressed: PyTorch's container. Zip64 included.
//
//   per entry      local header (30 bytes), name, extra fields, bytes
//   directory      per entry: sizes, checksum, place of the local header (46 bytes), name, extra
//   at the end     [zip64 end record (56) and its locator (20)], end record (22)
//
// Source: PKWARE APPNOTE 6.3; pytorch/pytorch, caffe2/serialize/inline_container.cc (alignment).
#pragma once

#include "llava/base/files.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace llava::weights {

/// Where an entry's bytes are in the archive, and the checksum that the archive claims for them.
struct ZipEntry {
  std::uint64_t offset = 0, size = 0;
  std::uint32_t crc = 0;
};

/// The entries of an archive by name.  Throws Error(data) if any is compressed, encrypted, outside
/// the file, overlaps another, has a name that leads outside a folder or appears twice.
std::unordered_map<std::string, ZipEntry> read_zip(const MappedFile& file);

/// Writes an archive that appears when complete.
class ZipWriter {
 public:
  explicit ZipWriter(const std::string& path) : file_(path) {}

  /// Adds an entry; its bytes begin at a multiple of 64 in the file, as PyTorch's do.
  void add(const std::string& name, std::string_view bytes);
  void commit();

 private:
  AtomicFile file_;
  std::uint64_t position_ = 0, num_entries_ = 0;
  std::string directory_;
};

/// The checksum of zip: CRC-32 with the polynomial of IEEE 802.3, reflected.
std::uint32_t crc32(std::string_view bytes);

}  // namespace llava::weights
