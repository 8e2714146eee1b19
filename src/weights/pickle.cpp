#include "pickle.h"

#include "llava/base/check.h"
#include "llava/weights/state_dict.h"
#include "strict_json.h"

#include <cstring>

namespace llava::weights {
namespace {

// A state dict takes about 40 operations a tensor, so this is room for 12,000 of them. With at most
// 100 bytes kept per operation it also bounds memory.
constexpr std::size_t kMaxOperations = 500'000;
constexpr std::size_t kMaxText = 64 << 10;

enum class Callable { ordered_dict, size, tensor_v2, tensor_v3, parameter, from_type, type };

struct Function {
  std::string_view name;
  Callable callable;
};

/// What a pickle may name besides dtypes and storages. What it may call is interpreted in reduce().
constexpr Function kFunctions[] = {
    {"collections.OrderedDict", Callable::ordered_dict},
    {"torch.Size", Callable::size},
    {"torch._utils._rebuild_tensor_v2", Callable::tensor_v2},
    {"torch._utils._rebuild_tensor_v3", Callable::tensor_v3},
    {"torch._utils._rebuild_parameter", Callable::parameter},
    {"torch._utils._rebuild_parameter_with_state", Callable::parameter},
    {"torch._tensor._rebuild_from_type_v2", Callable::from_type},
    {"torch.Tensor", Callable::type},
    {"torch.nn.parameter.Parameter", Callable::type},
};

// A global is a number: functions first, then dtypes, then the storage classes of dtypes, then the
// one storage class without a dtype.
constexpr std::int64_t kFirstDtype = std::size(kFunctions);
constexpr std::int64_t kFirstStorage = kFirstDtype + std::size(kTorchDtypes);
constexpr std::int64_t kUntypedStorage = kFirstStorage + std::size(kTorchDtypes);

/// -1 when there is no such global.
std::int64_t find_global(const std::string& name) {
  for (std::size_t i = 0; i < std::size(kFunctions); ++i)
    if (kFunctions[i].name == name) return static_cast<std::int64_t>(i);
  if (name == "torch.storage.UntypedStorage") return kUntypedStorage;
  if (!name.starts_with("torch.")) return -1;
  const auto suffix = std::string_view(name).substr(6);
  for (std::size_t i = 0; i < std::size(kTorchDtypes); ++i) {
    if (kTorchDtypes[i].name == suffix) return kFirstDtype + static_cast<std::int64_t>(i);
    if (!suffix.empty() && kTorchDtypes[i].storage == suffix)
      return kFirstStorage + static_cast<std::int64_t>(i);
  }
  return -1;
}

std::string hexadecimal(unsigned char byte) {
  constexpr char kDigits[] = "0123456789abcdef";
  return {'0', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
}

}  // namespace

Pickle::Pickle(std::string_view bytes, std::string where)
    : bytes_(bytes), where_(std::move(where)) {}

template <class... Parts>
void Pickle::refuse(const Parts&... why) const {
  fail(Fault::data, where_, ": the pickle at byte ", position_, " ", why...,
       "; nothing of it was run. If the file comes from a source you trust, save its tensors as "
       "safetensors");
}

void Pickle::require(bool ok, const char* why) const {
  if (!ok) refuse(why);
}

// ── Bytes ────────────────────────────────────────────────────────────────────────────────────────

std::string_view Pickle::take(std::uint64_t count) {
  require(count <= bytes_.size() - position_, "is cut short");
  const auto taken = bytes_.substr(position_, count);
  position_ += count;
  return taken;
}

std::string_view Pickle::take_line() {
  const auto end = bytes_.substr(position_, kMaxText).find('\n');
  require(end != bytes_.npos, "has a name without an end");
  const auto line = take(end);
  take(1);
  return line;
}

template <class T>
T Pickle::take_number() {
  T value;
  std::memcpy(&value, take(sizeof value).data(), sizeof value);
  return value;
}

/// Little-endian, two's complement.
std::int64_t Pickle::take_long(std::size_t bytes) {
  require(bytes <= 8, "has a number of more than 64 bits");
  const auto digits = take(bytes);
  std::uint64_t value = bytes > 0 && (digits.back() & 0x80) ? ~0ull : 0;
  for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(digits[i]);
  return static_cast<std::int64_t>(value);
}

// ── The stack ────────────────────────────────────────────────────────────────────────────────────

void Pickle::push(Kind kind, std::int64_t number) { stack_.push_back({kind, number, {}}); }

void Pickle::push_text(std::uint64_t size) {
  require(size <= kMaxText, "has a text longer than any name");
  const auto text = take(size);
  require(is_utf8(text), "has a text that is not UTF-8");
  stack_.push_back({Kind::text, 0, text});
}

void Pickle::push_sequence(Kind kind, Values values) {
  push(kind, static_cast<std::int64_t>(sequences_.size()));
  sequences_.push_back(std::move(values));
}

Pickle::Value Pickle::pop() {
  require(stack_.size() > (marks_.empty() ? 0 : marks_.back()),
          "takes a value where there is none");
  const Value value = stack_.back();
  stack_.pop_back();
  return value;
}

Pickle::Value Pickle::pop(Kind kind, const char* what) {
  const Value value = pop();
  if (value.kind != kind) refuse("expects ", what);
  return value;
}

Pickle::Values Pickle::pop_many(std::size_t count) {
  Values values(count);
  while (count-- > 0) values[count] = pop();
  return values;
}

Pickle::Values Pickle::pop_to_mark() {
  require(!marks_.empty(), "ends a group that it did not begin");
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  Values values(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return values;
}

Pickle::Values& Pickle::sequence_at_top(bool dict) {
  require(stack_.size() > (marks_.empty() ? 0 : marks_.back()),
          "takes a value where there is none");
  const Value& top = stack_.back();
  require(dict ? top.is_dict() : top.kind == Kind::list, "adds items to what holds none");
  return sequences_[index(top)];
}

// ── Operations ───────────────────────────────────────────────────────────────────────────────────

Pickle::Value Pickle::load() {
  constexpr unsigned char kStop = '.';
  stack_.clear();
  memo_.clear();
  marks_.clear();
  for (;;) {
    require(++num_operations_ <= kMaxOperations, "has more operations than any state dict needs");
    const auto operation = take_number<unsigned char>();
    if (operation == kStop) break;
    step(operation);
  }
  const Value result = pop();
  require(stack_.empty() && marks_.empty(), "leaves values behind");
  return result;
}

/// One operation.  Names as in CPython's Lib/pickle.py.
void Pickle::step(unsigned char operation) {
  const auto extend = [this](bool dict, const Values& values) {
    require(!dict || values.size() % 2 == 0, "has a key without a value");
    auto& sequence = sequence_at_top(dict);
    sequence.insert(sequence.end(), values.begin(), values.end());
  };
  switch (operation) {
    case 0x80: require(take_number<std::uint8_t>() <= 5, "is of an unknown protocol"); return;
    case 0x95: {  // FRAME
      const auto length = take_number<std::uint64_t>();
      require(length <= bytes_.size() - position_, "is cut short");
      return;
    }
    case '(': marks_.push_back(stack_.size()); return;                               // MARK
    case '0': pop(); return;                                                         // POP
    case '1': pop_to_mark(); return;                                                 // POP_MARK
    case 'N': push(Kind::none); return;                                              // NONE
    case 0x88: push(Kind::boolean, 1); return;                                       // NEWTRUE
    case 0x89: push(Kind::boolean, 0); return;                                       // NEWFALSE
    case 'J': push(Kind::integer, take_number<std::int32_t>()); return;              // BININT
    case 'K': push(Kind::integer, take_number<std::uint8_t>()); return;              // BININT1
    case 'M': push(Kind::integer, take_number<std::uint16_t>()); return;             // BININT2
    case 0x8a: push(Kind::integer, take_long(take_number<std::uint8_t>())); return;  // LONG1
    case 'G': take(8), push(Kind::real); return;                                     // BINFLOAT
    case 'X':                                                                        // BINUNICODE
    case 'T': push_text(take_number<std::uint32_t>()); return;                       // BINSTRING
    case 0x8c:                                                    // SHORT_BINUNICODE
    case 'U': push_text(take_number<std::uint8_t>()); return;     // SHORT_BINSTRING
    case 0x8d: push_text(take_number<std::uint64_t>()); return;   // BINUNICODE8
    case '}': push_sequence(Kind::dict, {}); return;              // EMPTY_DICT
    case ']': push_sequence(Kind::list, {}); return;              // EMPTY_LIST
    case ')': push_sequence(Kind::tuple, {}); return;             // EMPTY_TUPLE
    case 0x85: push_sequence(Kind::tuple, pop_many(1)); return;   // TUPLE1
    case 0x86: push_sequence(Kind::tuple, pop_many(2)); return;   // TUPLE2
    case 0x87: push_sequence(Kind::tuple, pop_many(3)); return;   // TUPLE3
    case 't': push_sequence(Kind::tuple, pop_to_mark()); return;  // TUPLE
    case 'a': extend(false, pop_many(1)); return;                 // APPEND
    case 'e': extend(false, pop_to_mark()); return;               // APPENDS
    case 's': extend(true, pop_many(2)); return;                  // SETITEM
    case 'u': extend(true, pop_to_mark()); return;                // SETITEMS
    case 'q': memoize(take_number<std::uint8_t>()); return;       // BINPUT
    case 'r': memoize(take_number<std::uint32_t>()); return;      // LONG_BINPUT
    case 0x94: memoize(memo_.size()); return;                     // MEMOIZE
    case 'h': recall(take_number<std::uint8_t>()); return;        // BINGET
    case 'j': recall(take_number<std::uint32_t>()); return;       // LONG_BINGET
    case 'Q': push_storage(); return;                             // BINPERSID
    case 'R': reduce(); return;                                   // REDUCE
    case 'b':                                                     // BUILD
      pop();  // the _metadata of a module's state dict
      require(!stack_.empty() && stack_.back().kind == Kind::ordered_dict,
              "sets attributes of what has none");
      return;
    case 'c': {  // GLOBAL
      const auto module = take_line();
      push_global(module, take_line());
      return;
    }
    case 0x93: {  // STACK_GLOBAL
      const auto name = pop(Kind::text, "the name of a global");
      push_global(pop(Kind::text, "the name of a module").text, name.text);
      return;
    }
    default: refuse("has operation ", hexadecimal(operation), ", which no state dict needs");
  }
}

void Pickle::memoize(std::uint64_t place) {
  require(place < kMaxOperations, "has a memo beyond all measure");
  require(!stack_.empty(), "takes a value where there is none");
  if (place >= memo_.size()) memo_.resize(place + 1);
  memo_[place] = stack_.back();
}

void Pickle::recall(std::uint64_t place) {
  require(place < memo_.size() && memo_[place].kind != Kind::unset, "recalls what it never stored");
  stack_.push_back(memo_[place]);
}

void Pickle::push_global(std::string_view module, std::string_view name) {
  const std::string full = std::string(module).append(".").append(name);
  const auto number = find_global(full);
  if (number < 0) refuse("asks for ", shown(full), ", which is no part of a dict of tensors");
  push(Kind::global, number);
}

/// ('storage', class, key, location, number of elements[, None]) -> storage.
void Pickle::push_storage() {
  const Values id = items(pop(Kind::tuple, "the description of a storage"));
  const bool fits = (id.size() == 5 || (id.size() == 6 && id[5].kind == Kind::none)) &&
                    id[0].text == "storage" && id[1].kind == Kind::global &&
                    id[1].number >= kFirstStorage && id[2].kind == Kind::text &&
                    id[4].kind == Kind::integer && id[4].number >= 0;
  require(fits, "describes a storage in an unknown way");
  PickledStorage storage{.key = id[2].text, .type = torch::kUInt8};
  storage.is_typed = id[1].number != kUntypedStorage;
  if (storage.is_typed) storage.type = kTorchDtypes[id[1].number - kFirstStorage].type;
  require(!__builtin_mul_overflow(static_cast<std::uint64_t>(id[4].number),
                                  c10::elementSize(storage.type), &storage.bytes),
          "has a storage beyond all measure");

  const auto [known, is_new] = storage_of_key_.emplace(storage.key, storages_.size());
  if (is_new) storages_.push_back(storage);
  require(storages_[known->second].bytes == storage.bytes, "gives one storage two sizes");
  push(Kind::storage, static_cast<std::int64_t>(known->second));
}

const PickledStorage* Pickle::find_storage(std::string_view key) const {
  const auto found = storage_of_key_.find(key);
  return found == storage_of_key_.end() ? nullptr : &storages_[found->second];
}

/// Interprets a call. The functions it knows make an empty dict, a tuple or a tensor.
void Pickle::reduce() {
  Values arguments = items(pop(Kind::tuple, "the arguments of a call"));
  const Value function = pop(Kind::global, "something to call");
  require(function.number < kFirstDtype, "calls a type");
  auto callable = kFunctions[function.number].callable;
  if (callable == Callable::from_type) {  // (function, type, arguments, state)
    require(arguments.size() == 4 && arguments[0].kind == Kind::global &&
                arguments[0].number < kFirstDtype && arguments[1].kind == Kind::global &&
                arguments[2].kind == Kind::tuple,
            "rebuilds a tensor in an unknown way");
    callable = kFunctions[arguments[0].number].callable;
    require(callable == Callable::tensor_v2 || callable == Callable::tensor_v3,
            "rebuilds a tensor in an unknown way");
    arguments = Values(items(arguments[2]));
  }
  switch (callable) {
    case Callable::ordered_dict:
      require(arguments.empty(), "makes a dictionary in an unknown way");
      push_sequence(Kind::ordered_dict, {});
      return;
    case Callable::size:
      require(arguments.size() == 1 && arguments[0].kind == Kind::tuple, "has an unknown size");
      stack_.push_back(arguments[0]);
      return;
    case Callable::parameter:  // (tensor, requires_grad, hooks[, state])
      require(arguments.size() >= 3 && arguments.size() <= 4 && arguments[0].kind == Kind::tensor,
              "has a parameter that is no tensor");
      stack_.push_back(arguments[0]);
      return;
    case Callable::tensor_v2: push_tensor(arguments, false); return;
    case Callable::tensor_v3: push_tensor(arguments, true); return;
    case Callable::from_type:
    case Callable::type: refuse("calls a type");
  }
}

/// (storage, offset, sizes, strides, requires_grad, hooks[, dtype][, metadata]) -> tensor.
void Pickle::push_tensor(const Values& arguments, bool has_dtype) {
  const std::size_t metadata = has_dtype ? 7 : 6;
  require(arguments.size() >= metadata && arguments.size() <= metadata + 1 &&
              arguments[0].kind == Kind::storage && arguments[1].kind == Kind::integer &&
              arguments[2].kind == Kind::tuple && arguments[3].kind == Kind::tuple,
          "rebuilds a tensor in an unknown way");
  if (arguments.size() > metadata) {
    const auto& extra = arguments[metadata];
    require(extra.kind == Kind::none || (extra.is_dict() && items(extra).empty()),
            "has a tensor with flags that are not supported");
  }
  PickledTensor tensor;
  tensor.storage = index(arguments[0]);
  tensor.type = storages_[tensor.storage].type;
  tensor.offset = arguments[1].number;
  require(has_dtype || storages_[tensor.storage].is_typed, "has a tensor without a dtype");
  if (has_dtype) {
    const auto& dtype = arguments[6];
    require(
        dtype.kind == Kind::global && dtype.number >= kFirstDtype && dtype.number < kFirstStorage,
        "has a tensor without a dtype");
    tensor.type = kTorchDtypes[dtype.number - kFirstDtype].type;
  }
  read_shape(arguments[2], arguments[3], tensor);
  check_extent(tensor);
  push(Kind::tensor, static_cast<std::int64_t>(tensors_.size()));
  tensors_.push_back(tensor);
}

void Pickle::read_shape(const Value& sizes, const Value& strides, PickledTensor& tensor) const {
  const auto &size = items(sizes), &stride = items(strides);
  require(size.size() == stride.size() && size.size() <= tensor.sizes.size(),
          "has a tensor with a shape that is not supported");
  tensor.rank = static_cast<std::uint8_t>(size.size());
  for (std::size_t i = 0; i < size.size(); ++i) {
    require(size[i].kind == Kind::integer && stride[i].kind == Kind::integer &&
                size[i].number >= 0 && stride[i].number >= 0,
            "has a tensor with a negative shape");
    tensor.sizes[i] = size[i].number;
    tensor.strides[i] = stride[i].number;
  }
}

/// The elements a tensor reaches must lie in its storage, and not be more than the storage has:
/// an expanded tensor would take more memory than the file.
void Pickle::check_extent(const PickledTensor& tensor) const {
  const auto capacity =
      static_cast<std::int64_t>(storages_[tensor.storage].bytes / c10::elementSize(tensor.type));
  std::int64_t last = tensor.offset, count = 1;
  bool fits = tensor.offset >= 0 && tensor.offset <= capacity, is_empty = false;
  for (std::size_t i = 0; i < tensor.rank; ++i) {
    const auto size = std::max<std::int64_t>(tensor.sizes[i], 1);
    std::int64_t reach = 0;
    is_empty = is_empty || tensor.sizes[i] == 0;
    fits = fits && !__builtin_mul_overflow(size - 1, tensor.strides[i], &reach) &&
           !__builtin_add_overflow(last, reach, &last) &&
           !__builtin_mul_overflow(count, size, &count);
  }
  require(fits && (is_empty || (last < capacity && count <= capacity)),
          "has a tensor that reaches beyond its storage");
}

}  // namespace llava::weights
