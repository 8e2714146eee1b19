#include "llava/weights/state_dict.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"
#include "strict_json.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>

namespace llava::weights {
namespace {

constexpr std::size_t kMaxIndexBytes = 16 << 20;
constexpr std::size_t kMaxTensors = 65'536;
constexpr std::size_t kMaxShards = 10'000;

/// A folder's weights are in one of these, the first that is there.
struct Source {
  const char* file;
  bool is_index;
};
constexpr Source kSources[] = {
    {"model.safetensors", false},
    {"model.safetensors.index.json", true},
    {"pytorch_model.bin", false},
    {"pytorch_model.bin.index.json", true},
};

struct Found {
  std::string path;
  bool is_index = false;
};

/// Path "" when nothing is there.
Found find_weights(const std::string& folder) {
  for (const auto& source : kSources) {
    const auto path = std::filesystem::path(folder) / source.file;
    std::error_code error;
    if (std::filesystem::exists(path, error)) return {path.string(), source.is_index};
  }
  return {};
}

/// A shard is a plain file name: no folders, no way out, nothing a terminal would act on.
bool is_plain_name(const std::string& name) {
  const auto is_bad = [](unsigned char c) {
    return c < 0x20 || c == 0x7f || c == '/' || c == '\\';
  };
  return !name.empty() && name.size() < 256 && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), is_bad);
}

/// The map of an index file: shards in order of appearance, each with the tensors it should hold.
struct Index {
  std::vector<std::string> shards;
  std::vector<std::vector<std::string>> names;            // per shard
  std::unordered_map<std::string, std::size_t> shard_of;  // tensor name -> index into shards
};

Index read_index(const std::string& path) {
  const MappedFile file(path);
  expect(file.size() <= kMaxIndexBytes, Fault::data, path, ": larger than ", kMaxIndexBytes,
         " bytes; is it an index of weights?");
  Index index;
  std::unordered_map<std::string, std::size_t> known;
  bool has_map = false;
  walk_json({file.data(), file.size()}, path, [&](const JsonValue& value) {
    using Kind = JsonValue::Kind;
    if (value.keys.empty()) {
      expect(value.kind == Kind::object, Fault::data, path, ": expected an object");
    } else if (value.keys[0] == "weight_map" && value.keys.size() == 1) {
      expect(value.kind == Kind::object, Fault::data, path, ": \"weight_map\" must be an object");
      has_map = true;
    } else if (value.keys[0] == "weight_map") {
      const auto& name = value.keys[1];
      expect(value.kind == Kind::string && value.keys.size() == 2, Fault::data, path, ": tensor ",
             shown(name), " must have the name of a file");
      const std::string shard(value.text);
      expect(is_plain_name(shard), Fault::data, path, ": tensor ", shown(name),
             " is said to be in ", shown(shard),
             "; only the names of files beside the index are allowed");
      const auto [at, is_new] = known.emplace(shard, index.shards.size());
      if (is_new) {
        index.shards.push_back(shard);
        index.names.emplace_back();
      }
      index.names[at->second].push_back(name);
      index.shard_of.emplace(name, at->second);
      expect(index.shard_of.size() <= kMaxTensors && index.shards.size() <= kMaxShards, Fault::data,
             path, ": more than ", kMaxTensors, " tensors or ", kMaxShards, " files");
    }
  });
  expect(has_map && !index.shards.empty(), Fault::data, path,
         ": lists no tensors under \"weight_map\"; is it an index of weights?");
  return index;
}

StateDict load_shards(const std::string& folder, const std::string& index_path) {
  const Index index = read_index(index_path);
  StateDict all;
  for (std::size_t i = 0; i < index.shards.size(); ++i) {
    const auto path = (std::filesystem::path(folder) / index.shards[i]).string();
    const StateDict shard = load_file(path);
    for (const auto& name : index.names[i]) {
      expect(shard.contains(name), Fault::data, path, ": lacks tensor ", shown(name), " which ",
             index_path, " says is here; is the download complete?");
      all.add(name, shard.at(name));
    }
    std::size_t extra = 0;
    for (const auto& [name, tensor] : shard) {
      const auto listed = index.shard_of.find(name);
      if (listed == index.shard_of.end()) {
        if (++extra == 1)
          log::warn(path, ": tensor ", shown(name), " is not in the index; ignored");
        continue;
      }
      expect(listed->second == i, Fault::data, path, ": tensor ", shown(name), " is also in ",
             shown(index.shards[listed->second]), "; remove the shards of an older save");
    }
    if (extra > 1) log::warn(path, ": ", extra, " tensors are not in the index; ignored");
  }
  return all;
}

}  // namespace

void StateDict::add(const std::string& name, const torch::Tensor& tensor) {
  const bool is_new = index_.emplace(name, entries_.size()).second;
  if (!is_new) fail(Fault::data, "tensor ", shown(name), " appears twice");
  entries_.emplace_back(name, tensor);
}

bool StateDict::contains(const std::string& name) const { return index_.count(name) == 1; }

const torch::Tensor& StateDict::at(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) fail(Fault::data, "tensor ", shown(name), " is missing");
  return entries_[found->second].second;
}

void StateDict::remove(const std::string& name) {
  const auto found = index_.find(name);
  if (found == index_.end()) fail(Fault::data, "tensor ", shown(name), " is missing");
  const auto place = found->second;
  index_.erase(found);
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(place));
  for (std::size_t i = place; i < entries_.size(); ++i) index_[entries_[i].first] = i;
}

StateDict load_folder(const std::string& folder) {
  const Found found = find_weights(folder);
  expect(
      !found.path.empty(), Fault::data, folder,
      ": has no weights (model.safetensors, pytorch_model.bin, or shards of these with an index)");
  return found.is_index ? load_shards(folder, found.path) : load_file(found.path);
}

bool has_weights(const std::string& folder) { return !find_weights(folder).path.empty(); }

StateDict load_file(const std::string& path) {
  return path.ends_with(".safetensors") ? load_safetensors(path) : load_torch_file(path);
}

std::string shown(std::string_view name) {
  constexpr std::size_t kMaxShown = 80;
  const nlohmann::json cut(std::string(name.substr(0, kMaxShown)));
  const auto escaped =
      cut.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  return name.size() <= kMaxShown ? escaped : escaped + "...";
}

}  // namespace llava::weights
