#include "llava/weights/safetensors.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "strict_json.h"
#include "tensor_bytes.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>

namespace llava::weights {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kMaxHeader = 16 << 20;
constexpr std::size_t kMaxTensors = 65'536;
constexpr std::size_t kMaxRank = 8;

struct Dtype {
  std::string_view name;
  torch::ScalarType type;
};

/// In the order of the official writer: a file's tensors go by this, then by name.
/// Source: huggingface/safetensors 0.8, tensor.rs, enum Dtype, read from its end.
constexpr Dtype kDtypes[] = {
    {"U64", torch::kUInt64},
    {"I64", torch::kInt64},
    {"F64", torch::kFloat64},
    {"C64", torch::kComplexFloat},
    {"F32", torch::kFloat32},
    {"U32", torch::kUInt32},
    {"I32", torch::kInt32},
    {"BF16", torch::kBFloat16},
    {"F16", torch::kFloat16},
    {"U16", torch::kUInt16},
    {"I16", torch::kInt16},
    {"F8_E5M2FNUZ", torch::kFloat8_e5m2fnuz},
    {"F8_E4M3FNUZ", torch::kFloat8_e4m3fnuz},
    {"F8_E8M0", torch::kFloat8_e8m0fnu},
    {"F8_E4M3", torch::kFloat8_e4m3fn},
    {"F8_E5M2", torch::kFloat8_e5m2},
    {"I8", torch::kInt8},
    {"U8", torch::kUInt8},
    {"BOOL", torch::kBool},
};

std::string dtype_names() {
  std::string names;
  for (const auto& dtype : kDtypes) names.append(names.empty() ? "" : ", ").append(dtype.name);
  return names;
}

// ── Reading ──────────────────────────────────────────────────────────────────────────────────────

/// One tensor as the header describes it. Plain data: a header has up to 65,536 of them.
struct Described {
  std::string name;
  const Dtype* dtype = nullptr;
  std::array<std::int64_t, kMaxRank> sizes{};
  std::uint64_t begin = 0, end = 0;  // bytes from the start of the data
  std::uint8_t rank = 0, num_offsets = 0;
  bool has_shape = false;
};

/// Fills a list of descriptions from the values of a header.
class HeaderReader {
 public:
  HeaderReader(const std::string& path, std::vector<Described>& tensors)
      : path_(path), tensors_(tensors) {}

  void operator()(const JsonValue& value) {
    const auto& keys = value.keys;
    if (keys.empty()) {
      expect(value.kind == Kind::object, Fault::data, path_, ": the header must be an object");
    } else if (keys[0] == "__metadata__") {
      read_metadata(value);
    } else if (keys.size() == 1) {
      expect(tensors_.size() < kMaxTensors, Fault::data, path_, ": more than ", kMaxTensors,
             " tensors");
      tensors_.emplace_back().name = keys[0];
      require(value.kind == Kind::object && !value.in_array, "must be an object");
    } else if (keys.size() == 2) {
      read_field(value, keys[1], tensors_.back());
    }
  }

 private:
  using Kind = JsonValue::Kind;

  void read_metadata(const JsonValue& value) {
    const bool fits = value.keys.size() == 1
                          ? value.kind == Kind::object || value.kind == Kind::null
                          : value.keys.size() == 2 && value.kind == Kind::string && !value.in_array;
    expect(fits, Fault::data, path_, ": \"__metadata__\" must be an object of strings");
  }

  void read_field(const JsonValue& value, const std::string& field, Described& tensor) {
    if (field == "dtype") {
      require(value.kind == Kind::string && !value.in_array, "needs a dtype");
      tensor.dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const Dtype& d) { return d.name == value.text; });
      if (tensor.dtype == std::end(kDtypes))
        require(false, "has dtype ", shown(value.text), "; supported are ", dtype_names());
    } else if (field == "shape" || field == "data_offsets") {
      const bool is_shape = field == "shape";
      require(value.kind == (value.in_array ? Kind::number : Kind::array),
              "needs arrays of whole numbers as \"shape\" and \"data_offsets\"");
      if (is_shape) tensor.has_shape = true;
      if (value.in_array) is_shape ? add_size(value, tensor) : add_offset(value, tensor);
    }
  }

  void add_size(const JsonValue& value, Described& tensor) {
    require(tensor.rank < kMaxRank, "has more than ", kMaxRank, " dimensions");
    require(value.number <= INT64_MAX, "has a dimension of ", value.number);
    tensor.sizes[tensor.rank++] = static_cast<std::int64_t>(value.number);
  }

  void add_offset(const JsonValue& value, Described& tensor) {
    require(++tensor.num_offsets <= 2, "has more than 2 offsets");
    (tensor.num_offsets == 1 ? tensor.begin : tensor.end) = value.number;
  }

  template <class... Parts>
  void require(bool ok, const Parts&... why) const {
    if (!ok) fail(Fault::data, path_, ": tensor ", shown(tensors_.back().name), " ", why...);
  }

  const std::string& path_;
  std::vector<Described>& tensors_;
};

/// Bytes of a tensor, nothing on overflow, which is checked at every step in the order of the
/// official reader. Zeros do not hide an overflow: torch computes strides as if they were ones.
std::optional<std::uint64_t> checked_bytes(const Described& tensor) {
  std::uint64_t extent = 1;
  bool is_empty = false;
  for (std::size_t i = 0; i < tensor.rank; ++i) {
    const auto size = static_cast<std::uint64_t>(tensor.sizes[i]);
    is_empty = is_empty || size == 0;
    const bool overflows =
        __builtin_mul_overflow(extent, std::max<std::uint64_t>(size, 1), &extent);
    if (overflows || extent > INT64_MAX / 8) return std::nullopt;
  }
  return is_empty ? 0 : extent * c10::elementSize(tensor.dtype->type);
}

void check_tensor(const Described& tensor, std::uint64_t data_bytes, const std::string& path) {
  const auto require = [&](bool ok, const auto&... why) {
    if (!ok) fail(Fault::data, path, ": tensor ", shown(tensor.name), " ", why...);
  };
  require(tensor.dtype && tensor.has_shape && tensor.num_offsets == 2,
          "needs \"dtype\", \"shape\" and two \"data_offsets\"");
  require(tensor.begin <= tensor.end && tensor.end <= data_bytes, "lies at bytes ", tensor.begin,
          " to ", tensor.end, " of ", data_bytes, "; is the file cut short?");
  const auto bytes = checked_bytes(tensor);
  require(bytes.has_value(), "has a shape whose size overflows");
  require(*bytes == tensor.end - tensor.begin, "has ", tensor.end - tensor.begin,
          " bytes, its shape and dtype need ", *bytes);
}

/// Sorts by place and checks that the tensors cover `data_bytes` exactly once.
void check_layout(std::vector<Described>& tensors, std::uint64_t data_bytes,
                  const std::string& path) {
  for (const auto& tensor : tensors) check_tensor(tensor, data_bytes, path);
  std::sort(tensors.begin(), tensors.end(), [](const Described& a, const Described& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t cursor = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& tensor = tensors[i];
    if (tensor.begin < cursor)
      fail(Fault::data, path, ": tensors ", shown(tensors[i - 1].name), " and ", shown(tensor.name),
           " overlap");
    if (tensor.begin > cursor)
      fail(Fault::data, path, ": bytes ", cursor, " to ", tensor.begin, " before tensor ",
           shown(tensor.name), " belong to no tensor");
    cursor = tensor.end;
  }
  expect(cursor == data_bytes, Fault::data, path, ": bytes ", cursor, " to ", data_bytes,
         " after the last tensor belong to no tensor");
}

// ── Writing ──────────────────────────────────────────────────────────────────────────────────────

using Entries = std::vector<const StateDict::Entry*>;

std::size_t dtype_rank(const StateDict::Entry& entry) {
  for (std::size_t i = 0; i < std::size(kDtypes); ++i)
    if (kDtypes[i].type == entry.second.scalar_type()) return i;
  fail(Fault::failure, "tensor ", shown(entry.first), " has dtype ",
       c10::toString(entry.second.scalar_type()), ", which safetensors cannot hold");
}

std::uint64_t num_bytes(const torch::Tensor& tensor) {
  return static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size();
}

void check_writable(const StateDict& state) {
  for (const auto& entry : state) {
    const auto& tensor = entry.second;
    expect(tensor.defined() && tensor.layout() == torch::kStrided && !tensor.is_meta(),
           Fault::failure, "tensor ", shown(entry.first), " has no dense data to write");
    dtype_rank(entry);
  }
}

/// One past the last byte that a tensor reaches.
const char* end_of(const torch::Tensor& tensor) {
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return static_cast<const char*>(tensor.const_data_ptr()) +
         static_cast<std::size_t>(last + 1) * tensor.element_size();
}

/// As the official writer, which refuses them: a reader could not tell which were one tensor.
void refuse_shared_memory(const StateDict& state) {
  Entries by_place;
  for (const auto& entry : state)
    if (entry.second.numel() > 0) by_place.push_back(&entry);
  const auto begin_of = [](const StateDict::Entry* entry) {
    return static_cast<const char*>(entry->second.const_data_ptr());
  };
  std::stable_sort(by_place.begin(), by_place.end(),
                   [&](auto* a, auto* b) { return begin_of(a) < begin_of(b); });
  for (std::size_t i = 1; i < by_place.size(); ++i) {
    const auto &a = *by_place[i - 1], &b = *by_place[i];
    expect(begin_of(&b) >= end_of(a.second) || a.second.device() != b.second.device(),
           Fault::failure, "tensors ", shown(a.first), " and ", shown(b.first),
           " share memory; save one of them");
  }
}

Entries in_file_order(Entries entries) {
  std::sort(entries.begin(), entries.end(), [](auto* a, auto* b) {
    const auto rank_a = dtype_rank(*a), rank_b = dtype_rank(*b);
    return rank_a != rank_b ? rank_a < rank_b : a->first < b->first;
  });
  return entries;
}

std::string header_of(const Entries& entries) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::uint64_t begin = 0;
  for (const auto* entry : entries) {
    const auto end = begin + num_bytes(entry->second);
    std::string shape;
    for (const auto size : entry->second.sizes())
      shape.append(shape.empty() ? "" : ",").append(std::to_string(size));
    expect(is_utf8(entry->first), Fault::failure, "the tensor name ", shown(entry->first),
           " is not UTF-8");
    header += "," + nlohmann::json(entry->first).dump();
    header.append(":{\"dtype\":\"").append(kDtypes[dtype_rank(*entry)].name);
    header += "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(end) + "]}";
    begin = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that 8-byte numbers are aligned
  return header;
}

/// Writes all bytes of a file without committing it.
std::unique_ptr<AtomicFile> written_file(const std::string& path, const Entries& unordered) {
  const Entries entries = in_file_order(unordered);
  const std::string header = header_of(entries);
  const std::uint64_t length = header.size();
  char prefix[8];
  std::memcpy(prefix, &length, sizeof prefix);

  auto file = std::make_unique<AtomicFile>(path);
  file->write({prefix, sizeof prefix});
  file->write(header);
  for (const auto* entry : entries) {
    file->write(bytes_of(packed(entry->second)));
  }
  return file;
}

/// Greedy split.  Source: huggingface/huggingface_hub, serialization/_base.py,
/// split_state_dict_into_shards_factory: a tensor above the limit becomes a shard at once, before
/// the one being filled.
std::vector<Entries> split(const StateDict& state, std::uint64_t max_shard_bytes) {
  std::vector<Entries> shards;
  Entries open;
  std::uint64_t open_bytes = 0;
  for (const auto& entry : state) {
    const auto bytes = num_bytes(entry.second);
    if (bytes > max_shard_bytes) {
      shards.push_back({&entry});
      continue;
    }
    if (open_bytes + bytes > max_shard_bytes) {
      shards.push_back(std::move(open));
      open.clear();
      open_bytes = 0;
    }
    open.push_back(&entry);
    open_bytes += bytes;
  }
  if (!open.empty() || shards.empty()) shards.push_back(std::move(open));
  return shards;
}

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return kSingleFile;
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

std::string index_text(const std::vector<Entries>& shards) {
  std::map<std::string, std::string> shard_of;  // sorted, as the official index is
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const auto* entry : shards[i]) {
      shard_of.emplace(entry->first, shard_name(i, shards.size()));
      total += num_bytes(entry->second);
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", shard_of}};
  return index.dump(2) + "\n";
}

/// Whether a name is that of some shard: model-ddddd-of-ddddd.safetensors.
bool is_shard_name(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; }, 'd');
  return name == "model-ddddd-of-ddddd.safetensors";
}

/// Removes weights of an earlier save, so that no reader mixes them with the new ones.
void remove_stale(const std::string& folder, const std::set<std::string>& current) {
  std::vector<std::filesystem::path> stale;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const auto name = file.path().filename().string();
    const bool is_ours = name == kSingleFile || name == kIndexFile || is_shard_name(name);
    if (is_ours && current.count(name) == 0) stale.push_back(file.path());
  }
  for (const auto& path : stale) std::filesystem::remove(path);
}

}  // namespace

StateDict load_safetensors(const std::string& path) {
  const MappedFile file(path);
  std::uint64_t header_bytes = 0;
  expect(file.size() >= sizeof header_bytes, Fault::data, path, ": ", file.size(),
         " bytes are too few for a safetensors file");
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  expect(header_bytes <= kMaxHeader && header_bytes <= file.size() - sizeof header_bytes,
         Fault::data, path, ": says its header has ", header_bytes, " bytes, but the file has ",
         file.size(), " and ", kMaxHeader, " are the most allowed; is it a safetensors file?");

  std::vector<Described> tensors;
  walk_json({file.data() + sizeof header_bytes, header_bytes}, path, HeaderReader(path, tensors));
  const std::size_t data_begin = sizeof header_bytes + header_bytes;
  check_layout(tensors, file.size() - data_begin, path);

  StateDict state;
  for (const auto& tensor : tensors) {
    const torch::IntArrayRef sizes(tensor.sizes.data(), tensor.rank);
    state.add(tensor.name,
              mapped_tensor(file, data_begin + tensor.begin, sizes, tensor.dtype->type));
  }
  return state;
}

void save_safetensors(const std::string& path, const StateDict& state) {
  check_writable(state);
  refuse_shared_memory(state);
  Entries entries;
  for (const auto& entry : state) entries.push_back(&entry);
  written_file(path, entries)->commit();
}

void save_safetensors_folder(const std::string& folder, const StateDict& state,
                             std::int64_t max_shard_bytes) {
  expect(max_shard_bytes > 0, Fault::usage, "a shard must hold at least one byte, not ",
         max_shard_bytes);
  check_writable(state);
  refuse_shared_memory(state);
  make_folder(folder);
  const auto in_folder = [&](const std::string& name) {
    return (std::filesystem::path(folder) / name).string();
  };

  const auto shards = split(state, static_cast<std::uint64_t>(max_shard_bytes));
  std::vector<std::unique_ptr<AtomicFile>> files;
  std::set<std::string> names;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto name = shard_name(i, shards.size());
    names.insert(name);
    files.push_back(written_file(in_folder(name), shards[i]));
  }
  for (const auto& file : files) file->commit();
  if (shards.size() > 1) {
    names.insert(kIndexFile);
    write_file(in_folder(kIndexFile), index_text(shards));
  }
  remove_stale(folder, names);
}

}  // namespace llava::weights
