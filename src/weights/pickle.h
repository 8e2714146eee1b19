// A pickle machine that knows dictionaries, tuples, strings, numbers and tensors, and nothing else.
// Every other operation and every other global is refused by name; nothing is ever called.
// Source: CPython, Lib/pickle.py (operations); pytorch/pytorch 2.11, torch/_utils.py (rebuilding).
#pragma once

#include "llava/torch.h"

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace llava::weights {

/// A dtype as PyTorch's files call it: torch.<name>, and torch.<storage> where such a class exists.
struct TorchDtype {
  torch::ScalarType type;
  std::string_view name, storage;
};
constexpr TorchDtype kTorchDtypes[] = {
    {torch::kFloat32, "float32", "FloatStorage"},
    {torch::kFloat16, "float16", "HalfStorage"},
    {torch::kBFloat16, "bfloat16", "BFloat16Storage"},
    {torch::kFloat64, "float64", "DoubleStorage"},
    {torch::kInt64, "int64", "LongStorage"},
    {torch::kInt32, "int32", "IntStorage"},
    {torch::kInt16, "int16", "ShortStorage"},
    {torch::kInt8, "int8", "CharStorage"},
    {torch::kUInt8, "uint8", "ByteStorage"},
    {torch::kBool, "bool", "BoolStorage"},
    {torch::kComplexFloat, "complex64", "ComplexFloatStorage"},
    {torch::kComplexDouble, "complex128", "ComplexDoubleStorage"},
    {torch::kUInt16, "uint16", ""},
    {torch::kUInt32, "uint32", ""},
    {torch::kUInt64, "uint64", ""},
    {torch::kFloat8_e5m2, "float8_e5m2", ""},
    {torch::kFloat8_e4m3fn, "float8_e4m3fn", ""},
    {torch::kFloat8_e5m2fnuz, "float8_e5m2fnuz", ""},
    {torch::kFloat8_e4m3fnuz, "float8_e4m3fnuz", ""},
    {torch::kFloat8_e8m0fnu, "float8_e8m0fnu", ""},
};

/// Bytes that tensors share; where they are is the container's business.
struct PickledStorage {
  std::string_view key;
  torch::ScalarType type;  // kUInt8 when untyped
  std::uint64_t bytes = 0;
  bool is_typed = true;
};

/// A tensor: a view of a storage that was checked to lie within its bytes.
struct PickledTensor {
  std::size_t storage = 0;  // index into Pickle::storages()
  torch::ScalarType type;
  std::int64_t offset = 0;  // elements
  std::uint8_t rank = 0;
  std::array<std::int64_t, 8> sizes{}, strides{};
};

class Pickle {
 public:
  /// Small and flat, so that a hostile pickle cannot nest, loop or grow: containers are numbers of
  /// sequences that the Pickle owns.
  struct Value {
    enum class Kind : std::uint8_t {
      unset,
      none,
      boolean,
      integer,
      real,
      text,
      global,
      tuple,
      list,
      dict,
      ordered_dict,
      storage,
      tensor,
    };
    Kind kind = Kind::unset;
    std::int64_t number = 0;  // of boolean, integer; else the index of what it is
    std::string_view text;

    bool is_dict() const { return kind == Kind::dict || kind == Kind::ordered_dict; }
  };
  using Values = std::vector<Value>;

  /// `where` begins the messages. `bytes` must outlive the Pickle.
  Pickle(std::string_view bytes, std::string where);

  /// Runs the next pickle in the bytes.  Throws Error(data).
  Value load();
  /// Where the next pickle begins.
  std::size_t position() const { return position_; }

  /// Elements of a tuple or list; keys and values of a dict, one after the other.
  const Values& items(const Value& value) const { return sequences_[index(value)]; }
  const PickledTensor& tensor(const Value& value) const { return tensors_[index(value)]; }
  const std::vector<PickledStorage>& storages() const { return storages_; }
  /// nullptr when no tensor names it.
  const PickledStorage* find_storage(std::string_view key) const;

 private:
  using Kind = Value::Kind;

  static std::size_t index(const Value& value) { return static_cast<std::size_t>(value.number); }
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... why) const;
  void require(bool ok, const char* why) const;

  std::string_view take(std::uint64_t count);
  std::string_view take_line();
  template <class T>
  T take_number();
  std::int64_t take_long(std::size_t bytes);

  void push(Kind kind, std::int64_t number = 0);
  void push_text(std::uint64_t size);
  void push_sequence(Kind kind, Values values);
  Value pop();
  Value pop(Kind kind, const char* what);
  Values pop_many(std::size_t count);
  Values pop_to_mark();
  Values& sequence_at_top(bool dict);

  void step(unsigned char operation);
  void memoize(std::uint64_t place);
  void recall(std::uint64_t place);
  void push_global(std::string_view module, std::string_view name);
  void push_storage();
  void reduce();
  void push_tensor(const Values& arguments, bool has_dtype);
  void read_shape(const Value& sizes, const Value& strides, PickledTensor& tensor) const;
  void check_extent(const PickledTensor& tensor) const;

  std::string_view bytes_;
  std::string where_;
  std::size_t position_ = 0, num_operations_ = 0;
  Values stack_, memo_;
  std::vector<std::size_t> marks_;  // heights of the stack
  std::deque<Values> sequences_;
  std::deque<PickledTensor> tensors_;
  std::vector<PickledStorage> storages_;
  std::unordered_map<std::string_view, std::size_t> storage_of_key_;
};

}  // namespace llava::weights
