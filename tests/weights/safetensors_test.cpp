#include "llava/weights/safetensors.h"

#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weights/bytes.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <set>

namespace llava::weights {
namespace {

using support::error_of;
using testing::HasSubstr;

const std::string kGolden = LLAVA_GOLDEN;

/// A file with this length field, header and data.
std::string file_of(std::uint64_t length, const std::string& header, std::size_t data_bytes) {
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes + header + std::string(data_bytes, '\x01');
}
std::string file_of(const std::string& header, std::size_t data_bytes) {
  return file_of(header.size(), header, data_bytes);
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(Safetensors, ReadsEveryDtypeOfTheOfficialWriter) {
  const auto state = load_safetensors(kGolden + "/every_dtype.safetensors");
  EXPECT_EQ(state.size(), 19);
  for (const auto& [name, tensor] : state) {
    EXPECT_EQ(tensor.sizes(), torch::IntArrayRef({2, 3})) << name;
    EXPECT_EQ(text_of(tensor), text_of(counting(6, tensor.scalar_type(), {2, 3}))) << name;
  }
  EXPECT_EQ(state.at("t.bfloat16").scalar_type(), torch::kBFloat16);
  EXPECT_EQ(state.at("t.float8_e4m3fn").scalar_type(), torch::kFloat8_e4m3fn);
}

TEST(Safetensors, WritesTheBytesOfTheOfficialWriter) {
  const support::TemporaryFolder folder;
  for (const auto* name : {"every_dtype.safetensors", "awkward.safetensors"}) {
    save_safetensors(folder / name, load_safetensors(kGolden + "/" + name));
    EXPECT_EQ(read_file(folder / name), read_file(kGolden + "/" + name)) << name;
  }
}

TEST(Safetensors, TensorsShareTheMappingUnlessMisaligned) {
  const support::TemporaryFolder folder;
  // A one-byte tensor in front leaves the float at an odd place: legal, but not to be mapped.
  const auto path =
      folder.write("odd.safetensors", file_of("{" + tensor("a", "BOOL", "[1]", "[0,1]") + "," +
                                                  tensor("b", "F32", "[2]", "[1,9]") + "}  ",
                                              9));
  const auto state = load_safetensors(path);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(state.at("b").data_ptr()) % 4, 0);
  EXPECT_EQ(text_of(state.at("b")), std::string(8, '\x01'));

  state.at("b").fill_(0);
  state.at("a").fill_(false);
  EXPECT_EQ(load_safetensors(path).at("a").item<bool>(), true) << "files are never written to";
}

TEST(Safetensors, TensorsOutliveTheirStateAndTheFilesName) {
  const support::TemporaryFolder folder;
  torch::Tensor kept;
  {
    StateDict state;
    state.add("x", torch::arange(5000, torch::kInt64));
    state.add("y", torch::ones({3}));
    save_safetensors(folder / "x.safetensors", state);
    auto loaded = load_safetensors(folder / "x.safetensors");
    kept = loaded.at("x");
    loaded.remove("y");
    loaded.remove("x");
    std::filesystem::remove(folder / "x.safetensors");
  }
  EXPECT_TRUE(kept.equal(torch::arange(5000, torch::kInt64)));
}

struct Header {
  const char* what;
  std::string header;
  std::size_t data_bytes;
};

// Source: huggingface/safetensors 0.8 accepts these too.
TEST(Safetensors, AcceptsWhatTheOfficialReaderAccepts) {
  const MemoryFile file;
  const auto x = tensor("x", "F32", "[2]", "[0,8]");
  const Header accepted[] = {
      {"no tensors", "{}", 0},
      {"white space around", " \n{" + x + "}\t\r\n ", 8},
      {"no metadata", "{\"__metadata__\":null," + x + "}", 8},
      {"metadata last", "{" + x + ",\"__metadata__\":{\"format\":\"pt\"}}", 8},
      {"unknown field", "{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"q\":-1}}",
       8},
      {"empty name", "{" + tensor("", "F32", "[2]", "[0,8]") + "}", 8},
      {"scalar", "{" + tensor("x", "F64", "[]", "[0,8]") + "}", 8},
      {"empty tensors in one place",
       "{" + tensor("e", "F32", "[0]", "[8,8]") + "," + x + "," +
           tensor("f", "I64", "[3,0]", "[8,8]") + "," + tensor("g", "U8", "[0,5]", "[0,0]") + "}",
       8},
      {"order of bytes is not order of names",
       "{" + tensor("b", "U8", "[3]", "[5,8]") + "," + tensor("a", "U8", "[5]", "[0,5]") + "}", 8},
  };
  for (const auto& [what, header, data_bytes] : accepted) {
    const auto path = file.hold(file_of(header, data_bytes));
    EXPECT_NO_THROW(load_safetensors(path)) << what;
  }
}

TEST(Safetensors, RefusesBadLengths) {
  const MemoryFile file;
  const std::string good = "{" + tensor("x", "F32", "[2]", "[0,8]") + "}";
  std::vector<std::string> files;
  for (std::size_t size = 0; size < 8; ++size) files.push_back(std::string(size, '{'));
  const std::uint64_t n = good.size(), all = n + 8 + 8;
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{7}, n - 7, n - 1, n + 1, n + 7, n + 9,
        all, std::uint64_t{100'000'001}, std::uint64_t{1} << 31, (std::uint64_t{1} << 32) - 1,
        (std::uint64_t{1} << 63) - 1, ~std::uint64_t{0} - 7, ~std::uint64_t{0}})
    files.push_back(file_of(length, good, 8));
  files.push_back(file_of(good, 8) + "\x01");
  files.push_back(file_of(good, 7));
  files.push_back(file_of(good, 8) + "PK\x03\x04 and a whole archive");
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto path = file.hold(files[i]);
    EXPECT_THAT(error_of(Fault::data, [&] { load_safetensors(path); }), HasSubstr(path)) << i;
  }
}

TEST(Safetensors, RefusesAHeaderThatNoModelNeeds) {
  const MemoryFile file;
  std::string many = "{";
  for (int i = 0; i <= 65'536; ++i)
    many += (i ? ",\"" : "\"") + std::to_string(i) +
            R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  const Header headers[] = {
      {"more than 65536 tensors", many + "}", 0},
      {"16777216 are the most", "{}" + std::string(17 << 20, ' '), 0},
      {"string longer", "{" + tensor(std::string(1 << 20, 'x'), "U8", "[1]", "[0,1]") + "}", 1},
      {"more than 8 dimensions", "{" + tensor("x", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1},
      {"must be an object", std::string(1000, '['), 0},
      {"deeper", "{\"x\":{\"q\":[[[[[]]]]]}}", 0},
  };
  for (const auto& [what, header, data_bytes] : headers) {
    const auto path = file.hold(file_of(header, data_bytes));
    EXPECT_THAT(error_of(Fault::data, [&] { load_safetensors(path); }), HasSubstr(what));
  }
}

// Source of the cases: reference tests of huggingface/safetensors 0.8, all refused by it as well,
// but for those marked "ours".
TEST(Safetensors, RefusesMalformedHeaders) {
  const auto x = tensor("x", "F32", "[2]", "[0,8]");
  const auto entry = [](const std::string& fields) { return "{\"x\":{" + fields + "}}"; };
  const std::string max = "18446744073709551615";
  const Header refused[] = {
      {"not UTF-8 in a name", "{" + tensor("\xff", "F32", "[2]", "[0,8]") + "}", 8},
      {"byte-order mark", "\xef\xbb\xbf{" + x + "}", 8},
      {"not JSON", "hello", 8},
      {"NUL after the object", "{" + x + "}" + std::string(3, '\0'), 8},
      {"garbage after the object", "{" + x + "}x", 8},
      {"trailing comma", "{" + x + ",}", 8},
      {"comment", "{" + x + "/* */}", 8},
      {"array", "[]", 0},
      {"null", "null", 0},
      {"string", "\"x\"", 0},
      {"empty with data", "{}", 8},
      {"tensor is a number", "{\"x\":1}", 0},
      {"tensor is null", "{\"x\":null}", 0},
      {"tensor is an array (ours)", "{\"x\":[\"F32\",[2],[0,8]]}", 8},
      {"partial overlap",
       "{" + tensor("a", "U8", "[6]", "[0,6]") + "," + tensor("b", "U8", "[4]", "[4,8]") + "}", 8},
      {"same range",
       "{" + tensor("a", "U8", "[8]", "[0,8]") + "," + tensor("b", "U8", "[8]", "[0,8]") + "}", 8},
      {"hole at the start", "{" + tensor("a", "U8", "[7]", "[1,8]") + "}", 8},
      {"hole in the middle",
       "{" + tensor("a", "U8", "[2]", "[0,2]") + "," + tensor("b", "U8", "[4]", "[4,8]") + "}", 8},
      {"hole at the end", "{" + tensor("a", "U8", "[7]", "[0,7]") + "}", 8},
      {"begin after end", "{" + tensor("a", "U8", "[8]", "[8,0]") + "}", 8},
      {"negative offset", "{" + tensor("a", "U8", "[8]", "[-1,8]") + "}", 8},
      {"negative zero", "{" + tensor("a", "U8", "[8]", "[-0,8]") + "}", 8},
      {"float offset", "{" + tensor("a", "U8", "[8]", "[0,8.0]") + "}", 8},
      {"exponent", "{" + tensor("a", "U8", "[8]", "[0,8e0]") + "}", 8},
      {"overflowing float", "{" + tensor("a", "U8", "[1e999]", "[0,8]") + "}", 8},
      {"string offset", "{" + tensor("a", "U8", "[8]", "[0,\"8\"]") + "}", 8},
      {"true as a dimension", "{" + tensor("a", "U8", "[true]", "[0,1]") + "}", 1},
      {"null as a dimension", "{" + tensor("a", "U8", "[null]", "[0,1]") + "}", 1},
      {"leading zero", "{" + tensor("a", "U8", "[08]", "[0,8]") + "}", 8},
      {"offset above 64 bits", "{" + tensor("a", "U8", "[8]", "[0,18446744073709551616]") + "}", 8},
      {"negative dimension", "{" + tensor("a", "U8", "[-8]", "[0,8]") + "}", 8},
      {"float dimension", "{" + tensor("a", "U8", "[8.0]", "[0,8]") + "}", 8},
      {"one offset", "{" + tensor("a", "U8", "[8]", "[8]") + "}", 8},
      {"three offsets", "{" + tensor("a", "U8", "[8]", "[0,8,8]") + "}", 8},
      {"no offset", "{" + tensor("a", "U8", "[0]", "[]") + "}", 0},
      {"offsets are an object", "{" + tensor("a", "U8", "[8]", "{\"begin\":0}") + "}", 8},
      {"nested offsets", "{" + tensor("a", "U8", "[8]", "[[0,8]]") + "}", 8},
      {"nested shape", "{" + tensor("a", "U8", "[[8]]", "[0,8]") + "}", 8},
      {"offsets missing", entry("\"dtype\":\"U8\",\"shape\":[8]"), 8},
      {"dtype missing", entry("\"shape\":[8],\"data_offsets\":[0,8]"), 8},
      {"shape missing", entry("\"dtype\":\"U8\",\"data_offsets\":[0,1]"), 1},
      {"shape null", "{" + tensor("a", "U8", "null", "[0,1]") + "}", 1},
      {"shape a number", "{" + tensor("a", "U8", "8", "[0,8]") + "}", 8},
      {"too few bytes", "{" + tensor("a", "F32", "[3]", "[0,8]") + "}", 8},
      {"too many bytes", "{" + tensor("a", "F32", "[1]", "[0,8]") + "}", 8},
      {"product overflows", "{" + tensor("a", "U8", "[4294967296,4294967296]", "[0,8]") + "}", 8},
      {"product overflows", "{" + tensor("a", "U8", "[" + max + "," + max + ",0]", "[0,0]") + "}",
       0},
      {"bits overflow", "{" + tensor("a", "F64", "[2305843009213693952]", "[0,8]") + "}", 8},
      {"bits wrap to the right size",
       "{" + tensor("a", "F64", "[2305843009213693953]", "[0,8]") + "}", 8},
      {"huge beside zero (ours)", "{" + tensor("a", "U8", "[0," + max + "]", "[0,0]") + "}", 0},
      {"unknown dtype", "{" + tensor("a", "F31", "[2]", "[0,8]") + "}", 8},
      {"lower-case dtype", "{" + tensor("a", "f32", "[2]", "[0,8]") + "}", 8},
      {"dtype a number", entry("\"dtype\":1,\"shape\":[8],\"data_offsets\":[0,8]"), 8},
      {"sub-byte dtype (ours)", "{" + tensor("a", "F4", "[16]", "[0,8]") + "}", 8},
      {"field twice",
       entry("\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]"), 8},
      {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}," + x + "}", 8},
      {"metadata of numbers", "{\"__metadata__\":{\"a\":1}," + x + "}", 8},
      {"metadata nested", "{\"__metadata__\":{\"a\":{}}," + x + "}", 8},
      {"metadata deeply nested", "{\"__metadata__\":{\"a\":{\"b\":\"c\"}}," + x + "}", 8},
      {"metadata an array", "{\"__metadata__\":[]," + x + "}", 8},
      {"metadata an array of strings", "{\"__metadata__\":[\"a\"]," + x + "}", 8},
      {"metadata a string", "{\"__metadata__\":\"a\"," + x + "}", 8},
      {"metadata value an array", "{\"__metadata__\":{\"a\":[\"b\"]}," + x + "}", 8},
      {"metadata a tensor", "{" + tensor("__metadata__", "F32", "[2]", "[0,8]") + "}", 8},
      {"name twice",
       "{" + tensor("x", "U8", "[4]", "[0,4]") + "," + tensor("x", "U8", "[4]", "[4,8]") + "}", 8},
      {"name twice, the last would do (ours)", "{" + x + "," + x + "}", 8},
      {"name twice by escapes (ours)",
       "{" + x + "," + tensor("\\u0078", "F32", "[2]", "[0,8]") + "}", 8},
      {"empty tensor inside another", "{" + x + "," + tensor("e", "F32", "[0]", "[4,4]") + "}", 8},
      {"lone surrogate", "{" + tensor("\\ud800", "F32", "[2]", "[0,8]") + "}", 8},
      {"control character", "{" + tensor("a\nb", "F32", "[2]", "[0,8]") + "}", 8},
      {"beyond the file", "{" + tensor("a", "F32", "[4]", "[0,16]") + "}", 8},
      {"cut short", "{" + x, 8},
      {"unfinished number", "{\"x\":{\"shape\":[1", 0},
  };
  const MemoryFile file;
  for (const auto& [what, header, data_bytes] : refused) {
    const auto path = file.hold(file_of(header, data_bytes));
    SCOPED_TRACE(what);
    EXPECT_THAT(error_of(Fault::data, [&] { load_safetensors(path); }), HasSubstr(path));
  }
}

TEST(Safetensors, SaysWhichTensorsAreAtFault) {
  const support::TemporaryFolder folder;
  const auto message = [&](const std::string& header, std::size_t data_bytes) {
    const auto path = folder.write("model.safetensors", file_of(header, data_bytes));
    return error_of(Fault::data, [&] { load_safetensors(path); });
  };
  EXPECT_THAT(message("{" + tensor("a", "U8", "[6]", "[0,6]") + "," +
                          tensor("b", "U8", "[4]", "[4,8]") + "}",
                      8),
              HasSubstr("tensors \"a\" and \"b\" overlap"));
  EXPECT_THAT(message("{" + tensor("a", "F32", "[3]", "[0,8]") + "}", 8),
              HasSubstr("tensor \"a\" has 8 bytes, its shape and dtype need 12"));
  EXPECT_THAT(message("{" + tensor("a", "F6_E2M3", "[4]", "[0,3]") + "}", 3),
              HasSubstr("dtype \"F6_E2M3\"; supported are U64, I64"));
  EXPECT_THAT(message("{" + tensor("\\u001b[31m", "F32", "[3]", "[0,8]") + "}", 8),
              HasSubstr("tensor \"\\u001b[31m\""))
      << "what a terminal would obey is shown escaped";
  EXPECT_THAT(error_of(Fault::data, [&] { load_safetensors(folder / "none.safetensors"); }),
              HasSubstr("none.safetensors: cannot be opened"));
}

// Any change of any byte gives an error or tensors within the file: nothing else, ever.
TEST(Safetensors, SurvivesMutants) {
  const MemoryFile file;
  const std::string good = read_file(kGolden + "/awkward.safetensors");
  std::mt19937 random(7);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = good;
    for (unsigned edits = 1 + random() % 3; edits > 0; --edits) {
      const auto at = random() % std::min<std::size_t>(bytes.size(), 420);
      const char* tokens[] = {"0", "9", "-", ",", "[", "]", "{", "}", "\"", ":", "\\", "e", " "};
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes.erase(at, 1 + random() % 4); break;
        case 2: bytes.insert(at, tokens[random() % std::size(tokens)]); break;
        case 3: bytes.replace(at, 1, tokens[random() % std::size(tokens)]); break;
      }
    }
    const auto path = file.hold(bytes);
    try {
      for (const auto& [name, tensor] : load_safetensors(path)) text_of(tensor);
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.fault()), static_cast<int>(Fault::data));
      ++refused;
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, 15'000);
}

TEST(Safetensors, WritesStridedTensorsPackedAndRefusesSharedMemory) {
  const support::TemporaryFolder folder;
  const auto base = torch::arange(12, torch::kFloat).reshape({3, 4});
  StateDict state;
  state.add("t", base.t());
  save_safetensors(folder / "t.safetensors", state);
  EXPECT_TRUE(load_safetensors(folder / "t.safetensors").at("t").equal(base.t()));

  state.add("row", base[1]);
  EXPECT_THAT(error_of(Fault::failure, [&] { save_safetensors(folder / "s.safetensors", state); }),
              HasSubstr("\"t\" and \"row\" share memory"));
  EXPECT_FALSE(std::filesystem::exists(folder / "s.safetensors"));

  StateDict apart;  // one storage, but no byte twice: as the official writer, accepted
  apart.add("first", base[0]);
  apart.add("last", base[2]);
  EXPECT_NO_THROW(save_safetensors(folder / "a.safetensors", apart));
}

TEST(Safetensors, RefusesToWriteWhatItCannotHold) {
  const support::TemporaryFolder folder;
  const auto message = [&](const std::string& name, const torch::Tensor& tensor) {
    StateDict state;
    state.add(name, tensor);
    return error_of(Fault::failure, [&] { save_safetensors(folder / "x.safetensors", state); });
  };
  EXPECT_THAT(message("c", torch::zeros({1}, torch::kComplexDouble)), HasSubstr("\"c\""));
  EXPECT_THAT(message("m", torch::zeros({1}, torch::kMeta)), HasSubstr("no dense data"));
  EXPECT_THAT(message("u", torch::Tensor()), HasSubstr("no dense data"));
  EXPECT_THAT(message("\xff", torch::zeros({1})), HasSubstr("not UTF-8"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "not even a temporary file";
}

// ── Folders ──────────────────────────────────────────────────────────────────────────────────────

/// Tensors a, b, ... of these numbers of bytes.
StateDict state_of(const std::vector<std::int64_t>& sizes) {
  StateDict state;
  for (std::size_t i = 0; i < sizes.size(); ++i)
    state.add(std::string(1, static_cast<char>('a' + i)),
              torch::full({sizes[i]}, static_cast<int>(i), torch::kUInt8));
  return state;
}

// Source: huggingface_hub, serialization/_base.py: the docstring's own example.
TEST(SafetensorsFolder, SplitsAsHuggingFace) {
  const support::TemporaryFolder folder;
  save_safetensors_folder(folder.path(), state_of({6, 6, 2, 6, 2, 2}), 10);
  const Json index = read_json(folder / "model.safetensors.index.json");
  EXPECT_EQ(index.dump(),
            R"({"metadata":{"total_size":24},"weight_map":{"a":"model-00001-of-00003.safetensors",)"
            R"("b":"model-00002-of-00003.safetensors","c":"model-00002-of-00003.safetensors",)"
            R"("d":"model-00003-of-00003.safetensors","e":"model-00003-of-00003.safetensors",)"
            R"("f":"model-00003-of-00003.safetensors"}})");
  const auto text = read_file(folder / "model.safetensors.index.json");
  EXPECT_EQ(text.substr(0, 17), "{\n  \"metadata\": {");
  EXPECT_EQ(text.back(), '\n');

  const auto loaded = load_folder(folder.path());
  EXPECT_EQ(loaded.size(), 6);
  EXPECT_TRUE(loaded.at("d").equal(torch::full({6}, 3, torch::kUInt8)));
}

TEST(SafetensorsFolder, ATensorAboveTheLimitComesBeforeTheShardBeingFilled) {
  const support::TemporaryFolder folder;
  save_safetensors_folder(folder.path(), state_of({2, 20, 3}), 10);
  const auto map = read_json(folder / "model.safetensors.index.json")["weight_map"];
  EXPECT_EQ(map["b"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(map["a"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(map["c"], "model-00002-of-00002.safetensors");
}

TEST(SafetensorsFolder, RemovesWhatAnEarlierSaveLeft) {
  const support::TemporaryFolder folder;
  folder.write("model-notes.safetensors", "kept");
  folder.write("config.json", "kept");
  const auto files = [&] {
    std::set<std::string> names;
    for (const auto& file : std::filesystem::directory_iterator(folder.path()))
      names.insert(file.path().filename().string());
    return names;
  };
  save_safetensors_folder(folder.path(), state_of({6, 6, 6}), 10);
  save_safetensors_folder(folder.path(), state_of({6, 7}), 10);
  EXPECT_EQ(files(),
            (std::set<std::string>{
                "config.json", "model-notes.safetensors", "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors", "model.safetensors.index.json"}));
  save_safetensors_folder(folder.path(), state_of({3}));
  EXPECT_EQ(files(),
            (std::set<std::string>{"config.json", "model-notes.safetensors", "model.safetensors"}));
  save_safetensors_folder(folder.path(), state_of({6, 6}), 10);
  EXPECT_EQ(files().count("model.safetensors"), 0);
  EXPECT_EQ(load_folder(folder.path()).size(), 2);
}

}  // namespace
}  // namespace llava::weights
