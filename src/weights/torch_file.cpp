#include "llava/weights/torch_file.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "pickle.h"
#include "tensor_bytes.h"
#include "zip.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <tuple>

namespace llava::weights {
namespace {

static_assert(std::endian::native == std::endian::little, "storages are little-endian");

constexpr std::string_view kZipMagic = "PK\x03\x04";

// The pickle of 0x1950a86a20f9469cfc6c.  Source: pytorch/pytorch, torch/serialization.py.
constexpr std::string_view kLegacyMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Where a storage's bytes are in the file.
struct Place {
  std::uint64_t offset = 0, size = 0;
};
using PlaceOf = std::function<Place(const PickledStorage&)>;

/// The dict of tensors in what was saved: itself, or what a training script wrapped.
Pickle::Value find_state(const Pickle& pickle, const Pickle::Value& root, const std::string& path) {
  expect(root.is_dict(), Fault::data, path, ": holds no dict of tensors");
  const auto& items = pickle.items(root);
  for (std::size_t i = 0; i < items.size(); i += 2) {
    const auto key = items[i].text;
    if ((key == "state_dict" || key == "model" || key == "module") && items[i + 1].is_dict())
      return items[i + 1];
  }
  return root;
}

/// Each storage becomes one mapping, which its tensors share.
StateDict make_state(const MappedFile& file, const Pickle& pickle, const Pickle::Value& root,
                     const PlaceOf& place_of) {
  const auto& items = pickle.items(find_state(pickle, root, file.path()));
  std::vector<torch::Tensor> storages(pickle.storages().size());
  StateDict state;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    using Kind = Pickle::Value::Kind;
    const std::string name(items[i].text);
    expect(items[i].kind == Kind::text && items[i + 1].kind == Kind::tensor, Fault::data,
           file.path(), ": entry ", shown(name), " is not a tensor; is it a file of weights?");
    expect(!state.contains(name), Fault::data, file.path(), ": tensor ", shown(name),
           " appears twice");
    const auto& tensor = pickle.tensor(items[i + 1]);
    auto& storage = storages[tensor.storage];
    if (!storage.defined()) {
      const auto& wanted = pickle.storages()[tensor.storage];
      const Place place = place_of(wanted);
      expect(place.size == wanted.bytes, Fault::data, file.path(), ": the storage of tensor ",
             shown(name), " has ", place.size, " bytes, not ", wanted.bytes,
             "; is the download complete?");
      storage = mapped_storage(file, place.offset, place.size);
    }
    const torch::IntArrayRef sizes(tensor.sizes.data(), tensor.rank);
    const torch::IntArrayRef strides(tensor.strides.data(), tensor.rank);
    state.add(
        name,
        torch::empty({0}, tensor.type).set_(storage.storage(), tensor.offset, sizes, strides));
  }
  return state;
}

StateDict load_zip(const MappedFile& file) {
  constexpr std::string_view kPickle = "/data.pkl";
  const auto& path = file.path();
  const auto entries = read_zip(file);
  const auto at_root = [&](const auto& entry) {
    return entry.first.ends_with(kPickle) &&
           entry.first.find('/') == entry.first.size() - kPickle.size();
  };
  const auto found = std::find_if(entries.begin(), entries.end(), at_root);
  expect(found != entries.end(), Fault::data, path,
         ": a zip archive without data.pkl; is it a PyTorch file?");
  expect(std::count_if(entries.begin(), entries.end(), at_root) == 1, Fault::data, path,
         ": has two data.pkl");
  const std::string root = found->first.substr(0, found->first.size() - kPickle.size() + 1);
  const auto bytes_of = [&](const ZipEntry& entry) {
    return std::string_view(file.data() + entry.offset, entry.size);
  };
  const auto order = entries.find(root + "byteorder");
  expect(order == entries.end() || bytes_of(order->second) == "little", Fault::data, path,
         ": was saved on a big-endian machine; save it again on this kind of machine");
  expect(crc32(bytes_of(found->second)) == found->second.crc, Fault::data, path,
         ": the checksum of data.pkl is wrong; is the download complete?");

  Pickle pickle(bytes_of(found->second), path);
  const auto value = pickle.load();
  expect(pickle.position() == found->second.size, Fault::data, path,
         ": data.pkl has more than one pickle");
  return make_state(file, pickle, value, [&](const PickledStorage& storage) {
    const auto entry = entries.find(std::string(root).append("data/").append(storage.key));
    expect(entry != entries.end(), Fault::data, path, ": lacks the storage ", shown(storage.key));
    return Place{entry->second.offset, entry->second.size};
  });
}

/// Magic number, protocol, machine, object, keys of storages, then per key its length and bytes.
StateDict load_legacy(const MappedFile& file) {
  using Kind = Pickle::Value::Kind;
  constexpr std::int64_t kProtocol = 1001;
  const auto& path = file.path();
  const std::string_view bytes =
      std::string_view(file.data(), file.size()).substr(kLegacyMagic.size());
  Pickle pickle(bytes, path);
  const auto protocol = pickle.load();
  expect(protocol.kind == Kind::integer && protocol.number == kProtocol, Fault::data, path,
         ": an unknown version of PyTorch's old format");
  const auto machine = pickle.load();
  expect(machine.is_dict(), Fault::data, path, ": a damaged PyTorch file");
  const auto& facts = pickle.items(machine);
  for (std::size_t i = 0; i < facts.size(); i += 2) {
    expect(facts[i].text != "little_endian" || facts[i + 1].number == 1, Fault::data, path,
           ": was saved on a big-endian machine; save it again on this kind of machine");
  }
  const auto value = pickle.load();
  const auto keys = pickle.load();
  expect(keys.kind == Kind::list, Fault::data, path, ": a damaged PyTorch file");

  std::map<std::string_view, Place> places;
  std::uint64_t at = kLegacyMagic.size() + pickle.position();
  for (const auto& key : pickle.items(keys)) {
    const auto* wanted = pickle.find_storage(key.text);
    std::uint64_t count = 0;
    expect(wanted && file.size() - at >= sizeof count, Fault::data, path,
           ": a damaged list of storages");
    std::memcpy(&count, file.data() + at, sizeof count);
    at += sizeof count;
    const bool is_new = places.emplace(key.text, Place{at, wanted->bytes}).second;
    expect(is_new && count == wanted->bytes / c10::elementSize(wanted->type) &&
               wanted->bytes <= file.size() - at,
           Fault::data, path, ": storage ", shown(key.text),
           " is not as long as it should be; is the download complete?");
    at += wanted->bytes;
  }
  expect(at == file.size(), Fault::data, path, ": has ", file.size() - at, " bytes too many");
  return make_state(file, pickle, value, [&](const PickledStorage& storage) {
    const auto place = places.find(storage.key);
    expect(place != places.end(), Fault::data, path, ": lacks the storage ", shown(storage.key));
    return place->second;
  });
}

// ── Writing ──────────────────────────────────────────────────────────────────────────────────────

/// Strides of row-major order.
std::vector<std::int64_t> packed_strides(torch::IntArrayRef sizes) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  return strides;
}

/// Pickles a dict of tensors with the operations that torch.save uses, protocol 2.
class Writer {
 public:
  Writer() { text_ = "\x80\x02}"; }

  void begin_items() { text_ += '('; }
  void end_items() { text_ += 'u'; }

  void tensor(const std::string& name, const torch::Tensor& tensor, const std::string& key) {
    const auto& dtype =
        *std::find_if(std::begin(kTorchDtypes), std::end(kTorchDtypes),
                      [&](const auto& d) { return d.type == tensor.scalar_type(); });
    const bool is_typed = !dtype.storage.empty();
    string(name);
    global("torch._utils", is_typed ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    text_ += "((";
    string("storage");
    if (is_typed) {
      global("torch", dtype.storage);
    } else {
      global("torch.storage", "UntypedStorage");
    }
    string(key);
    string("cpu");
    integer(tensor.numel() * (is_typed ? 1 : tensor.element_size()));
    text_ += "tQ";  // the storage
    integer(0);     // offset
    tuple(tensor.sizes());
    tuple(packed_strides(tensor.sizes()));
    text_ += '\x89';  // requires no gradient
    global("collections", "OrderedDict");
    text_ += ")R";  // no hooks
    if (!is_typed) global("torch", dtype.name);
    text_ += "tR";
  }

  std::string finish() && { return std::move(text_) + '.'; }

 private:
  template <class T>
  void number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(std::string_view value) {
    text_ += 'X';
    number(static_cast<std::uint32_t>(value.size()));
    text_ += value;
  }
  void global(std::string_view module, std::string_view name) {
    text_.append("c").append(module).append("\n").append(name).append("\n");
  }
  void integer(std::int64_t value) {
    if (value <= INT32_MAX) {
      text_ += 'J';
      number(static_cast<std::int32_t>(value));
    } else {
      text_ += "\x8a\x08";
      number(value);
    }
  }
  void tuple(torch::IntArrayRef values) {
    text_ += '(';
    for (const auto value : values) integer(value);
    text_ += 't';
  }

  std::string text_;
};

bool has_dtype(torch::ScalarType type) {
  return std::any_of(std::begin(kTorchDtypes), std::end(kTorchDtypes),
                     [&](const auto& dtype) { return dtype.type == type; });
}

}  // namespace

StateDict load_torch_file(const std::string& path) {
  const MappedFile file(path);
  const std::string_view bytes(file.data(), file.size());
  if (bytes.starts_with(kZipMagic)) return load_zip(file);
  if (bytes.starts_with(kLegacyMagic)) return load_legacy(file);
  fail(Fault::data, path, ": is not a file that torch.save wrote; is the download complete?");
}

void save_torch_file(const std::string& path, const StateDict& state) {
  using Memory = std::tuple<const void*, torch::ScalarType, std::int64_t>;
  std::map<Memory, std::string> keys;  // tensors that are the same memory are one storage
  std::vector<torch::Tensor> storages;
  Writer pickle;
  if (!state.empty()) pickle.begin_items();
  for (const auto& [name, tensor] : state) {
    expect(tensor.defined() && tensor.layout() == torch::kStrided && !tensor.is_meta() &&
               has_dtype(tensor.scalar_type()),
           Fault::failure, "tensor ", shown(name),
           " has no dense data that a PyTorch file can hold");
    const Memory memory{tensor.const_data_ptr(), tensor.scalar_type(), tensor.numel()};
    const bool is_shared = tensor.is_contiguous() && tensor.numel() > 0;
    std::string key = std::to_string(storages.size());
    if (is_shared) key = keys.emplace(memory, key).first->second;
    if (key == std::to_string(storages.size())) storages.push_back(tensor);
    pickle.tensor(name, tensor, key);
  }
  if (!state.empty()) pickle.end_items();

  ZipWriter zip(path);
  zip.add("archive/data.pkl", std::move(pickle).finish());
  zip.add("archive/byteorder", "little");
  for (std::size_t i = 0; i < storages.size(); ++i) {
    zip.add("archive/data/" + std::to_string(i), bytes_of(packed(storages[i])));
  }
  zip.add("archive/version", "3\n");
  zip.commit();
}

}  // namespace llava::weights
