#include "zip.h"

#include "llava/base/check.h"
#include "llava/weights/state_dict.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace llava::weights {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50,
                        kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr std::uint64_t kLocalSize = 30, kEntrySize = 46, kEndSize = 22, kEnd64Size = 56,
                        kLocatorSize = 20;
constexpr std::uint32_t kIn64 = 0xffffffff;  // in a 32-bit field: the value is in the zip64 extra
constexpr std::uint64_t kMaxEntries = 66'000;
constexpr std::uint64_t kAlignment = 64;

// ── Reading ──────────────────────────────────────────────────────────────────────────────────────

/// Numbers and strings of a file, never beyond its end.
class Bytes {
 public:
  explicit Bytes(const MappedFile& file) : path_(file.path()), all_(file.data(), file.size()) {}

  template <class T>
  T number(std::uint64_t offset) const {
    T value;
    std::memcpy(&value, text(offset, sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view text(std::uint64_t offset, std::uint64_t size) const {
    if (offset > all_.size() || size > all_.size() - offset) damaged("it is cut short");
    return all_.substr(offset, size);
  }
  std::uint64_t size() const { return all_.size(); }
  template <class... Parts>
  [[noreturn]] void damaged(const Parts&... why) const {
    fail(Fault::data, path_, ": a damaged zip archive: ", why..., "; is the download complete?");
  }

 private:
  std::string path_;
  std::string_view all_;
};

struct Directory {
  std::uint64_t offset = 0, size = 0, num_entries = 0;
};

/// Offset of the end record, which is followed by its comment and nothing else.
std::uint64_t find_end(const Bytes& bytes) {
  for (std::uint64_t comment = 0; comment <= 0xffff && kEndSize + comment <= bytes.size();
       ++comment) {
    const auto at = bytes.size() - kEndSize - comment;
    if (bytes.number<std::uint32_t>(at) == kEnd && bytes.number<std::uint16_t>(at + 20) == comment)
      return at;
  }
  bytes.damaged("it has no end record");
}

Directory find_directory(const Bytes& bytes) {
  const auto end = find_end(bytes);
  Directory directory{bytes.number<std::uint32_t>(end + 16), bytes.number<std::uint32_t>(end + 12),
                      bytes.number<std::uint16_t>(end + 10)};
  if (bytes.number<std::uint32_t>(end + 4) != 0) bytes.damaged("it is one of several disks");
  auto limit = end;
  if (end >= kLocatorSize && bytes.number<std::uint32_t>(end - kLocatorSize) == kLocator64) {
    const auto at = bytes.number<std::uint64_t>(end - kLocatorSize + 8);
    if (bytes.number<std::uint32_t>(at) != kEnd64 ||
        bytes.number<std::uint64_t>(at + 4) != end - kLocatorSize - at - 12)
      bytes.damaged("its zip64 end record is not where it says");
    directory = {bytes.number<std::uint64_t>(at + 48), bytes.number<std::uint64_t>(at + 40),
                 bytes.number<std::uint64_t>(at + 32)};
    limit = at;
  }
  if (directory.size > limit || directory.offset != limit - directory.size)
    bytes.damaged("its directory is not where it says");
  if (directory.num_entries > kMaxEntries || directory.num_entries * kEntrySize > directory.size)
    bytes.damaged("it claims ", directory.num_entries, " entries");
  return directory;
}

/// Replaces those of `fields` that say so by their 64-bit values in the extra field.
void read_zip64(const Bytes& bytes, std::uint64_t begin, std::uint64_t end,
                const std::array<std::uint64_t*, 3>& fields) {
  std::array<bool, 3> wanted;
  for (std::size_t i = 0; i < 3; ++i) wanted[i] = *fields[i] == kIn64;
  while (end - begin >= 4) {
    const auto id = bytes.number<std::uint16_t>(begin);
    const std::uint64_t next = begin + 4 + bytes.number<std::uint16_t>(begin + 2);
    if (next > end) bytes.damaged("an extra field is too long");
    begin += 4;
    for (std::size_t i = 0; i < 3 && id == 1; ++i) {
      if (!wanted[i] || next - begin < 8) continue;
      *fields[i] = bytes.number<std::uint64_t>(begin);
      begin += 8;
    }
    begin = next;
  }
}

bool leads_outside(std::string_view name) {
  return name.empty() || name[0] == '/' || name.find('\\') != name.npos || name == ".." ||
         name.starts_with("../") || name.ends_with("/..") || name.find("/../") != name.npos;
}

struct Extent {
  std::uint64_t begin = 0, end = 0;  // local header and bytes of an entry
};

/// Checks the local header that the directory points to and finds the bytes behind it.
Extent locate(const Bytes& bytes, std::uint64_t local, const std::string& name,
              const Directory& directory, ZipEntry& entry) {
  if (bytes.number<std::uint32_t>(local) != kLocalHeader ||
      bytes.number<std::uint16_t>(local + 8) != 0 ||
      bytes.text(local + kLocalSize, bytes.number<std::uint16_t>(local + 26)) != name)
    bytes.damaged("entry ", shown(name), " is not where the directory says");
  entry.offset = local + kLocalSize + name.size() + bytes.number<std::uint16_t>(local + 28);
  if (entry.offset > directory.offset || entry.size > directory.offset - entry.offset)
    bytes.damaged("entry ", shown(name), " reaches beyond the archive");
  return {local, entry.offset + entry.size};
}

// ── Writing ──────────────────────────────────────────────────────────────────────────────────────

template <class T>
void append(std::string& text, T value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::uint32_t low32(std::uint64_t value) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(value, kIn64));
}

/// The fields that a local header and a directory entry have in common: from the version on, up to
/// the length of the extra field.
std::string common_fields(const std::string& name, std::uint32_t crc, std::uint64_t size,
                          std::size_t extra) {
  std::string fields;
  append<std::uint16_t>(fields, 45);      // version needed: zip64
  append<std::uint16_t>(fields, 0x0800);  // names are UTF-8
  append<std::uint16_t>(fields, 0);       // stored
  append<std::uint16_t>(fields, 0);       // time
  append<std::uint16_t>(fields, 0x21);    // 1980-01-01: the same state gives the same file
  append<std::uint32_t>(fields, crc);
  append<std::uint32_t>(fields, low32(size));
  append<std::uint32_t>(fields, low32(size));
  append<std::uint16_t>(fields, static_cast<std::uint16_t>(name.size()));
  append<std::uint16_t>(fields, static_cast<std::uint16_t>(extra));
  return fields;
}

/// The zip64 extra field with those of the values that do not fit in 32 bits.
std::string zip64_extra(std::initializer_list<std::uint64_t> values) {
  std::string content, field;
  for (const auto value : values)
    if (value >= kIn64) append(content, value);
  if (content.empty()) return field;
  append<std::uint16_t>(field, 1);
  append<std::uint16_t>(field, static_cast<std::uint16_t>(content.size()));
  return field + content;
}

/// Row k of the tables: what a byte does to the checksum when k bytes follow it.
/// Source: "Slicing-by-8" of Intel's "High Octane CRC Generation", 2005.
using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0xedb88320u : 0u);
    tables[0][byte] = crc;
  }
  for (std::size_t row = 1; row < 8; ++row)
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const auto crc = tables[row - 1][byte];
      tables[row][byte] = (crc >> 8) ^ tables[0][crc & 0xff];
    }
  return tables;
}

constexpr CrcTables kCrc = make_crc_tables();

}  // namespace

std::unordered_map<std::string, ZipEntry> read_zip(const MappedFile& file) {
  const Bytes bytes(file);
  const Directory directory = find_directory(bytes);
  std::unordered_map<std::string, ZipEntry> entries;
  std::vector<Extent> extents;
  std::uint64_t at = directory.offset;
  for (std::uint64_t i = 0; i < directory.num_entries; ++i) {
    if (bytes.number<std::uint32_t>(at) != kDirectoryEntry) bytes.damaged("its directory is torn");
    const auto flags = bytes.number<std::uint16_t>(at + 8);
    const auto method = bytes.number<std::uint16_t>(at + 10);
    ZipEntry entry{.size = bytes.number<std::uint32_t>(at + 24),
                   .crc = bytes.number<std::uint32_t>(at + 16)};
    std::uint64_t packed = bytes.number<std::uint32_t>(at + 20);
    std::uint64_t local = bytes.number<std::uint32_t>(at + 42);
    const std::uint64_t name_end = at + kEntrySize + bytes.number<std::uint16_t>(at + 28);
    const std::uint64_t extra_end = name_end + bytes.number<std::uint16_t>(at + 30);
    const std::string name(bytes.text(at + kEntrySize, name_end - at - kEntrySize));
    read_zip64(bytes, name_end, extra_end, {&entry.size, &packed, &local});
    at = extra_end + bytes.number<std::uint16_t>(at + 32);

    constexpr std::uint16_t kEncrypted = 0x0001, kMasked = 0x2000;
    if (method != 0 || packed != entry.size || (flags & (kEncrypted | kMasked)))
      bytes.damaged("entry ", shown(name), " is compressed or encrypted, which PyTorch never does");
    if (leads_outside(name)) bytes.damaged("entry ", shown(name), " leads outside its folder");
    extents.push_back(locate(bytes, local, name, directory, entry));
    if (!entries.emplace(name, entry).second)
      bytes.damaged("entry ", shown(name), " appears twice");
  }
  if (at != directory.offset + directory.size) bytes.damaged("its directory is torn");

  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end) bytes.damaged("two of its entries overlap");
  return entries;
}

void ZipWriter::add(const std::string& name, std::string_view bytes) {
  const std::uint32_t crc = crc32(bytes);
  const std::uint64_t local = position_;
  std::string extra = zip64_extra({bytes.size(), bytes.size()});
  const std::uint64_t unaligned = local + kLocalSize + name.size() + extra.size() + 4;
  const auto padding = (kAlignment - unaligned % kAlignment) % kAlignment;
  extra += "FB";
  append(extra, static_cast<std::uint16_t>(padding));
  extra.append(padding, 'Z');

  std::string header;
  append(header, kLocalHeader);
  header += common_fields(name, crc, bytes.size(), extra.size()) + name + extra;
  file_.write(header);
  file_.write(bytes);
  position_ += header.size() + bytes.size();

  const std::string extra64 = zip64_extra({bytes.size(), bytes.size(), local});
  append(directory_, kDirectoryEntry);
  append<std::uint16_t>(directory_, 45);  // version made by
  directory_ += common_fields(name, crc, bytes.size(), extra64.size());
  directory_.append(10, '\0');  // no comment, disk 0, no attributes
  append(directory_, low32(local));
  directory_ += name + extra64;
  ++num_entries_;
}

void ZipWriter::commit() {
  const std::uint64_t size = directory_.size(), begin = position_, end64 = begin + size;
  std::string tail = directory_;
  append(tail, kEnd64);
  append<std::uint64_t>(tail, kEnd64Size - 12);
  append<std::uint32_t>(tail, 45 << 16 | 45);  // versions
  tail.append(8, '\0');                        // disks
  for (const auto value : {num_entries_, num_entries_, size, begin}) append(tail, value);
  append(tail, kLocator64);
  append<std::uint32_t>(tail, 0);
  append(tail, end64);
  append<std::uint32_t>(tail, 1);  // disks
  append(tail, kEnd);
  append<std::uint32_t>(tail, 0);
  const auto count = static_cast<std::uint16_t>(std::min<std::uint64_t>(num_entries_, 0xffff));
  append(tail, count);
  append(tail, count);
  append(tail, low32(size));
  append(tail, low32(begin));
  append<std::uint16_t>(tail, 0);  // no comment
  file_.write(tail);
  file_.commit();
}

std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = 0xffffffff;
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof word);
    word ^= crc;
    crc = 0;
    for (int i = 0; i < 8; ++i) crc ^= kCrc[7 - i][word >> (8 * i) & 0xff];
  }
  for (const unsigned char byte : bytes) crc = kCrc[0][(crc ^ byte) & 0xff] ^ (crc >> 8);
  return ~crc;
}

}  // namespace llava::weights
