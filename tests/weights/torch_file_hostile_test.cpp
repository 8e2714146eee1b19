// PyTorch files made to harm: each is refused with a message, at once, without memory and without
// doing anything of what it asks.
#include "llava/base/files.h"
#include "llava/weights/torch_file.h"
#include "support/expect_error.h"
#include "weights/bytes.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace llava::weights {
namespace {

using support::error_of;
using testing::HasSubstr;

const std::string kGolden = LLAVA_GOLDEN;

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// CRC-32, bit by bit.
std::uint32_t slow_crc(const std::string& bytes) {
  std::uint32_t crc = ~0u;
  for (const unsigned char byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
  }
  return ~crc;
}

struct ZipFile {
  std::string name, bytes;
};

/// A plain zip of stored entries.
std::string zip_of(const std::vector<ZipFile>& files) {
  std::string all, directory;
  for (const auto& [name, bytes] : files) {
    const auto size = static_cast<std::uint32_t>(bytes.size());
    const std::string common = raw<std::uint16_t>(20) + raw<std::uint16_t>(0) +
                               raw<std::uint16_t>(0) + raw<std::uint32_t>(0) +
                               raw(slow_crc(bytes)) + raw(size) + raw(size) +
                               raw(static_cast<std::uint16_t>(name.size())) + raw<std::uint16_t>(0);
    directory += "PK\x01\x02" + raw<std::uint16_t>(20) + common + std::string(10, '\0') +
                 raw(static_cast<std::uint32_t>(all.size())) + name;
    all += "PK\x03\x04" + common + name + bytes;
  }
  const auto count = static_cast<std::uint16_t>(files.size());
  return all + directory + "PK\x05\x06" + raw<std::uint32_t>(0) + raw(count) + raw(count) +
         raw(static_cast<std::uint32_t>(directory.size())) +
         raw(static_cast<std::uint32_t>(all.size())) + raw<std::uint16_t>(0);
}

/// An archive with this pickle and one storage of 16 bytes under the key 0.
std::string file_with(const std::string& pickle) {
  return zip_of({{"m/data.pkl", pickle}, {"m/data/0", std::string(16, '\x01')}});
}

std::string text(const std::string& value) {
  return "X" + raw(static_cast<std::uint32_t>(value.size())) + value;
}
std::string integer(std::int64_t value) {
  return value == static_cast<std::int32_t>(value) ? "J" + raw(static_cast<std::int32_t>(value))
                                                   : "\x8a\x08" + raw(value);
}
std::string tuple(const std::vector<std::int64_t>& values) {
  std::string code = "(";
  for (const auto value : values) code += integer(value);
  return code + "t";
}
std::string storage(const std::string& type, const std::string& key, std::int64_t count) {
  return "(" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cpu") +
         integer(count) + "tQ";
}
std::string tensor(const std::string& storage_code, std::int64_t offset,
                   const std::vector<std::int64_t>& sizes,
                   const std::vector<std::int64_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage_code + integer(offset) + tuple(sizes) +
         tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
}
/// {"x": value}
std::string dict_of(const std::string& value) { return "\x80\x02}" + text("x") + value + "s."; }

std::string refusal(const std::string& bytes) {
  const MemoryFile file;
  const auto path = file.hold(bytes);
  const auto message = error_of(Fault::data, [&] { load_torch_file(path); });
  EXPECT_THAT(message, HasSubstr(path));
  return message;
}

TEST(HostileTorchFile, TheBuilderOfTheseTestsMakesGoodFiles) {
  const MemoryFile file;
  const auto path =
      file.hold(file_with(dict_of(tensor(storage("FloatStorage", "0", 4), 1, {3}, {1}))));
  EXPECT_EQ(text_of(load_torch_file(path).at("x")), std::string(12, '\x01'));
}

TEST(HostileTorchFile, CallsNothingAndNamesWhatWasAskedFor) {
  struct Case {
    std::string pickle, named;
  };
  const Case cases[] = {
      {"\x80\x02"
       "cos\nsystem\n" +
           text("touch owned") + "\x85R.",
       "\"os.system\""},
      {"\x80\x02"
       "cposix\nsystem\n" +
           text("id") + "\x85R.",
       "\"posix.system\""},
      {"\x80\x02"
       "c__builtin__\neval\n" +
           text("1") + "\x85R.",
       "\"__builtin__.eval\""},
      {"\x80\x02"
       "cbuiltins\nexec\n" +
           text("1") + "\x85R.",
       "\"builtins.exec\""},
      {"\x80\x02"
       "csubprocess\nPopen\n" +
           text("id") + "\x85R.",
       "\"subprocess.Popen\""},
      {"\x80\x04\x8c\x02os\x8c\x06system\x93" + text("id") + "\x85R.", "\"os.system\""},
      {"\x80\x02"
       "cbuiltins\ngetattr\n",
       "\"builtins.getattr\""},
      {"\x80\x02"
       "c_codecs\nencode\n",
       "\"_codecs.encode\""},
      {"\x80\x02"
       "ctorch\nload\n",
       "\"torch.load\""},
      {"\x80\x02"
       "ctorch.hub\nload\n",
       "\"torch.hub.load\""},
      {"\x80\x02"
       "ctorch\nFloatStorage.__init__\n",
       "FloatStorage.__init__"},
      {"\x80\x02"
       "ctorch\n\n",
       "\"torch.\""},
      {"\x80\x02"
       "ctorch.jit._pickle\nrestore_type_tag\n",
       "restore_type_tag"},
      {"\x80\x02"
       "cargparse\nNamespace\n)\x81}b.",
       "\"argparse.Namespace\""},
      {"\x80\x02"
       "ctorch._utils\n_rebuild_qtensor\n",
       "_rebuild_qtensor"},
      {"\x80\x02"
       "ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n",
       "\"os.system\""},
      {"\x80\x02"
       "cos\x1b[2J\nsystem\n",
       "\\u001b[2J"},
      {"\x80\x02(" + text("id") + "ios\nsystem\n.", "operation 0x69"},  // INST
      {"\x80\x02"
       "Pos.system\n.",
       "operation 0x50"},  // PERSID
      {"\x80\x02"
       "ccollections\nOrderedDict\n)\x81.",
       "operation 0x81"},                       // NEWOBJ
      {"\x80\x02\x82\x01.", "operation 0x82"},  // EXT1
      {"\x80\x05\x96", "operation 0x96"},       // BYTEARRAY8
  };
  for (const auto& [pickle, named] : cases)
    EXPECT_THAT(refusal(file_with(pickle)), HasSubstr(named)) << named;
}

TEST(HostileTorchFile, RefusesPicklesThatDoNotAddUp) {
  const std::string put_far = "\x80\x02Nr\xff\xff\xff\x7f.";
  const std::string pickles[] = {
      "",
      ".",
      "\x80",
      "\x80\x09N.",
      "\x80\x02.",
      "\x80\x02N",
      "\x80\x02N.",
      "\x80\x02K\x01.",
      "\x80\x02].",
      "\x80\x02}}.",
      "\x80\x02(}.",
      "\x80\x02t.",
      "\x80\x02}u.",
      "\x80\x02}(" + text("x") + "u.",
      "\x80\x02}(NNu.",
      "\x80\x02}(" + text("x") + "Nu.",
      "\x80\x02}" + text("x") + "}s.",
      "\x80\x02}a.",
      "\x80\x02]NNs.",
      "\x80\x02(0.",
      "\x80\x02(1N.",
      "\x80\x02\x85.",
      "\x80\x02N\x86.",
      "\x80\x02N(\x85t.",
      "\x80\x02h" + std::string(1, '\0') + ".",
      "\x80\x02j\xff\xff\xff\x7f.",
      put_far,
      "\x80\x02q" + std::string(1, '\0') + ".",
      "\x80\x02X\xff\xff\xff\xff"
      "abc.",
      "\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
      "abc.",
      "\x80\x02\x8a\xff"
      "abc.",
      "\x80\x02\x8a\x09"
      "123456789.",
      "\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
      "\x80\x02"
      "cno_end",
      "\x80\x02}Nb.",
      "\x80\x02NNb.",
      "\x80\x02NNR.",
      "\x80\x02"
      "ctorch\nFloatStorage\n)R.",
      "\x80\x02"
      "ctorch\nfloat32\n)R.",
      "\x80\x02"
      "ctorch\nTensor\n)R.",
      "\x80\x02"
      "ccollections\nOrderedDict\nNR.",
      "\x80\x02"
      "ccollections\nOrderedDict\n]\x85R.",
      "\x80\x02"
      "ctorch\nSize\n)R.",
      "\x80\x02"
      "ctorch\nSize\nK\x01\x85R.",
      "\x80\x02"
      "ctorch._utils\n_rebuild_parameter\n(NNNtR.",
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n)R.",
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
      "\x80\x02"
      "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n)NtR.",
      "\x80\x02"
      "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\n"
      "ctorch\nTensor\n)NtR.",
      "\x80\x02NQ.",
      "\x80\x02)Q.",
      "\x80\x02(" + text("module") + "ctorch\nFloatStorage\n" + text("0") + text("cpu") +
          "K\x04tQ.",
      "\x80\x02(" + text("storage") + "ctorch\nfloat32\n" + text("0") + text("cpu") + "K\x04tQ.",
      "\x80\x02(" + text("storage") + "ctorch\nFloatStorage\nK\x01" + text("cpu") + "K\x04tQ.",
      "\x80\x02(" + text("storage") + "ctorch\nFloatStorage\n" + text("0") + text("cpu") + "NtQ.",
      "\x80\x02}.\x80\x02}.",
  };
  for (std::size_t i = 0; i < std::size(pickles); ++i) {
    SCOPED_TRACE(i);
    refusal(file_with(pickles[i]));
  }
}

TEST(HostileTorchFile, RefusesTensorsThatReachBeyondTheirStorage) {
  const std::string good = storage("FloatStorage", "0", 4);
  const std::int64_t huge = INT64_MAX;
  const std::string tensors[] = {
      tensor(good, 0, {5}, {1}),
      tensor(good, 1, {4}, {1}),
      tensor(good, -1, {4}, {1}),
      tensor(good, 5, {0}, {1}),
      tensor(good, huge, {1}, {1}),
      tensor(good, 0, {2}, {4}),
      tensor(good, 0, {2}, {-1}),
      tensor(good, 0, {-2}, {1}),
      tensor(good, 0, {2}, {huge}),
      tensor(good, 0, {3}, {huge}),
      tensor(good, 0, {huge, huge, 0}, {1, 1, 1}),
      tensor(good, 0, {std::int64_t{1} << 40}, {0}),
      tensor(good, 0, {5, 5}, {0, 0}),
      tensor(good, 0, {2, 2}, {1}),
      tensor(good, 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}),
      tensor(storage("FloatStorage", "0", 3), 0, {3}, {1}),
      tensor(storage("FloatStorage", "0", 5), 0, {4}, {1}),
      tensor(storage("FloatStorage", "0", -4), 0, {0}, {1}),
      tensor(storage("DoubleStorage", "0", std::int64_t{1} << 61), 0, {1}, {1}),
      tensor(storage("DoubleStorage", "0", huge), 0, {1}, {1}),
      tensor(storage("FloatStorage", "1", 4), 0, {4}, {1}),
      tensor(storage("FloatStorage", "../data.pkl", 4), 0, {4}, {1}),
      tensor(storage("QInt8Storage", "0", 16), 0, {4}, {1}),
      tensor("N", 0, {4}, {1}),
  };
  for (std::size_t i = 0; i < std::size(tensors); ++i) {
    SCOPED_TRACE(i);
    refusal(file_with(dict_of(tensors[i])));
  }
  const std::string two_sizes = "\x80\x02}(" + text("a") + tensor(good, 0, {4}, {1}) + text("b") +
                                tensor(storage("FloatStorage", "0", 2), 0, {2}, {1}) + "u.";
  EXPECT_THAT(refusal(file_with(two_sizes)), HasSubstr("gives one storage two sizes"));
  const std::string twice = "\x80\x02}(" + text("a") + tensor(good, 0, {4}, {1}) + text("a") +
                            tensor(good, 0, {2}, {1}) + "u.";
  EXPECT_THAT(refusal(file_with(twice)), HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(refusal(read_file(kGolden + "/expanded.bin")), HasSubstr("beyond its storage"));
}

TEST(HostileTorchFile, BombsEndEarly) {
  const auto repeated = [](const std::string& code, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += code;
    return all;
  };
  const std::string zero(1, '\0');
  const std::string bombs[] = {
      "\x80\x02" + std::string(2'000'000, '('),
      "\x80\x02" + std::string(2'000'000, 'N'),
      "\x80\x02" + std::string(2'000'000, ']'),
      "\x80\x02" + std::string(2'000'000, '}'),
      "\x80\x02)" + std::string(2'000'000, '\x85') + ".",  // nested tuples
      "\x80\x02)q" + zero + repeated("h" + zero + "h" + zero + "\x86q" + zero, 200'000) + ".",
      "\x80\x02]q" + zero + repeated("h" + zero + "h" + zero + "a", 100) + ".",  // holds itself
      "\x80\x02]q" + zero + repeated("h" + zero + "a", 400'000) + ".",
      "\x80\x02" + std::string(200'000, '(') + std::string(200'000, 't') + ".",
  };
  for (std::size_t i = 0; i < std::size(bombs); ++i) {
    SCOPED_TRACE(i);
    refusal(file_with(bombs[i]));
  }
}

// ── The archive ──────────────────────────────────────────────────────────────────────────────────

/// `bytes` with the number at `at` replaced.
template <class T>
std::string patched(std::string bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
  return bytes;
}

TEST(HostileTorchFile, RefusesArchivesThatLie) {
  const std::string pickle = dict_of(tensor(storage("FloatStorage", "0", 4), 0, {4}, {1}));
  const std::string good = file_with(pickle);
  const auto first = good.find("PK\x01\x02");              // directory entry of data.pkl
  const auto second = good.find("PK\x01\x02", first + 1);  // of data/0
  const auto end = good.rfind("PK\x05\x06");
  const std::string storage_bytes(16, '\x01');
  const std::string archives[] = {
      patched<std::uint16_t>(good, second + 10, 8),           // deflated
      patched<std::uint16_t>(good, second + 8, 1),            // encrypted
      patched<std::uint32_t>(good, second + 24, 17),          // one byte more than stored
      patched<std::uint32_t>(good, second + 24, 0xffffffff),  // 64-bit size without its field
      patched<std::uint32_t>(patched<std::uint32_t>(good, second + 20, 1 << 30), second + 24,
                             1 << 30),
      patched<std::uint32_t>(good, second + 42, 0),  // two names, one local header
      patched<std::uint32_t>(good, second + 42, static_cast<std::uint32_t>(first)),
      patched<std::uint32_t>(good, second + 42, 0xfffffff0),
      patched<std::uint16_t>(good, second + 28, 0xffff),  // name beyond the directory
      patched<std::uint16_t>(good, second + 30, 0xffff),
      patched<std::uint16_t>(good, second + 32, 1),
      patched<std::uint32_t>(good, first + 16, 0),  // checksum of data.pkl
      patched<std::uint16_t>(good, 26, 0xffff),     // local name
      patched<std::uint16_t>(good, 28, 0xffff),     // local extra field
      patched<std::uint16_t>(good, 8, 8),           // local: deflated
      patched<std::uint16_t>(good, end + 10, 0),    // number of entries
      patched<std::uint16_t>(good, end + 10, 3),
      patched<std::uint16_t>(good, end + 10, 0xffff),
      patched<std::uint32_t>(good, end + 12, 0),  // size of the directory
      patched<std::uint32_t>(good, end + 16, 0),  // place of the directory
      patched<std::uint32_t>(good, end + 16, 0xffffffff),
      patched<std::uint16_t>(good, end + 20, 1),  // length of a comment
      good + "x",
      "#!/bin/sh\n" + good,
      good.substr(0, end),
      zip_of({}),
      zip_of({{"m/data.pkl", pickle}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", "short"}}),
      zip_of({{"data.pkl", pickle}, {"data/0", storage_bytes}}),
      zip_of({{"m/x/data.pkl", pickle}, {"m/x/data/0", storage_bytes}}),
      zip_of({{"../data.pkl", pickle}, {"../data/0", storage_bytes}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"m/../../x", "x"}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"/etc/passwd", "x"}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"m\\x", "x"}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"", "x"}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"m/data/0", storage_bytes}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"n/data.pkl", pickle}}),
      zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage_bytes}, {"m/byteorder", "big"}}),
  };
  for (std::size_t i = 0; i < std::size(archives); ++i) {
    SCOPED_TRACE(i);
    refusal(archives[i]);
  }
}

TEST(HostileTorchFile, RefusesZip64ThatLies) {
  const std::string good = read_file(kGolden + "/parameters.bin");  // torch always writes zip64
  const auto end64 = good.rfind("PK\x06\x06"), locator = good.rfind("PK\x06\x07");
  ASSERT_NE(end64, good.npos);
  for (const std::uint64_t lie :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{good.size()}, std::uint64_t{1} << 32,
        std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    for (const auto at : {end64 + 4, end64 + 32, end64 + 40, end64 + 48, locator + 8}) {
      SCOPED_TRACE(at);
      refusal(patched(good, at, lie));
    }
  }
}

TEST(HostileTorchFile, RefusesEveryPrefix) {
  for (const auto* name : {"parameters.bin", "module_legacy.bin"}) {
    const std::string good = read_file(kGolden + "/" + name);
    for (std::size_t size = 0; size < good.size(); ++size) {
      SCOPED_TRACE(size);
      refusal(good.substr(0, size));
    }
  }
  refusal(read_file(kGolden + "/module_legacy.bin") + "x");
}

TEST(HostileTorchFile, RefusesOtherFormatsWithoutGuessing) {
  for (const std::string& bytes : {std::string("hello"), std::string(512, '\0'),
                                   std::string("\x7f"
                                               "ELF"),
                                   read_file(kGolden + "/awkward.safetensors"),
                                   "\x80\x02"
                                   "cos\nsystem\n" +
                                       text("id") + "\x85R."})
    EXPECT_THAT(refusal(bytes), HasSubstr("not a file that torch.save wrote"));
}

// Any change of any byte gives an error or tensors within the file: nothing else, ever.
TEST(HostileTorchFile, SurvivesMutants) {
  const MemoryFile file;
  std::mt19937 random(11);
  const std::string zip = read_file(kGolden + "/views.bin");
  const std::string legacy = read_file(kGolden + "/views_legacy.bin");
  const auto begin = zip.find("\x80\x02}");  // the pickle inside the archive
  const std::string pickle = zip.substr(begin, zip.find("u.", begin) + 2 - begin);
  const auto mutated = [&](std::string bytes) {
    for (unsigned edits = 1 + random() % 3; edits > 0; --edits) {
      const auto at = random() % bytes.size();
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8)); break;
        case 2: bytes.erase(at, 1 + random() % 4); break;
        case 3: bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + random() % 16)); break;
      }
      if (bytes.empty()) bytes = ".";
    }
    return bytes;
  };
  int accepted = 0, refused = 0;
  for (int i = 0; i < 15'000; ++i) {
    const std::string bytes = i % 3 == 0   ? mutated(zip)
                              : i % 3 == 1 ? mutated(legacy)
                                           : zip_of({{"m/data.pkl", mutated(pickle)},
                                                     {"m/data/0", std::string(96, '\x01')},
                                                     {"m/data/1", std::string(12, '\x01')}});
    const auto path = file.hold(bytes);
    try {
      for (const auto& [name, tensor] : load_torch_file(path)) text_of(tensor.contiguous());
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.fault()), static_cast<int>(Fault::data));
      ++refused;
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace llava::weights
