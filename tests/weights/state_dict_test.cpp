#include "llava/weights/state_dict.h"

#include "llava/base/files.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weights/bytes.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

namespace llava::weights {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::HasSubstr;

std::string names_of(const StateDict& state) {
  std::string names;
  for (const auto& [name, tensor] : state) names += name;
  return names;
}

StateDict state_of(const std::string& names) {
  StateDict state;
  for (const char name : names)
    state.add(std::string(1, name), torch::full({2}, name, torch::kUInt8));
  return state;
}

TEST(StateDict, KeepsOrderThroughRemovals) {
  StateDict state = state_of("abcde");
  state.remove("b");
  state.remove("e");
  state.add("b", torch::zeros({1}));
  EXPECT_EQ(names_of(state), "acdb");
  EXPECT_EQ(state.at("d")[0].item<int>(), 'd');
  EXPECT_FALSE(state.contains("e"));
  const StateDict copy = state;
  state.remove("a");
  EXPECT_TRUE(copy.contains("a"));
  EXPECT_EQ(copy.size(), 4);
}

TEST(StateDict, NamesTheTensorAtFault) {
  StateDict state = state_of("a");
  EXPECT_THAT(error_of(Fault::data, [&] { state.add("a", torch::zeros({1})); }),
              HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(error_of(Fault::data, [&] { state.at("z"); }), HasSubstr("\"z\" is missing"));
  EXPECT_THAT(error_of(Fault::data, [&] { state.remove("z"); }), HasSubstr("\"z\" is missing"));
  EXPECT_EQ(state.size(), 1);
}

TEST(Shown, EscapesAndCuts) {
  EXPECT_EQ(shown("a.b"), "\"a.b\"");
  EXPECT_EQ(shown("\x1b[2J\n\""), R"("\u001b[2J\n\"")");
  EXPECT_EQ(shown("\xff"), R"("\ufffd")");
  EXPECT_EQ(shown(std::string(200, 'x')), "\"" + std::string(80, 'x') + "\"...");
}

// ── Folders ──────────────────────────────────────────────────────────────────────────────────────

TEST(LoadFolder, PrefersSafetensorsAndOneFile) {
  const TemporaryFolder folder;
  EXPECT_FALSE(has_weights(folder.path()));
  EXPECT_FALSE(has_weights(folder / "none"));
  EXPECT_THAT(error_of(Fault::data, [&] { load_folder(folder.path()); }), HasSubstr("no weights"));

  save_torch_file(folder / "shard.bin", state_of("d"));
  folder.write("pytorch_model.bin.index.json", R"({"weight_map": {"d": "shard.bin"}})");
  EXPECT_TRUE(has_weights(folder.path()));
  EXPECT_EQ(names_of(load_folder(folder.path())), "d");
  save_torch_file(folder / "pytorch_model.bin", state_of("c"));
  EXPECT_EQ(names_of(load_folder(folder.path())), "c");
  save_safetensors(folder / "shard.safetensors", state_of("b"));
  folder.write("model.safetensors.index.json", R"({"weight_map": {"b": "shard.safetensors"}})");
  EXPECT_EQ(names_of(load_folder(folder.path())), "b");
  save_safetensors(folder / "model.safetensors", state_of("a"));
  EXPECT_EQ(names_of(load_folder(folder.path())), "a");
}

TEST(LoadFolder, LoadsWhatTheIndexListsInItsOrder) {
  const TemporaryFolder folder;
  save_safetensors(folder / "1.safetensors", state_of("abx"));
  save_safetensors(folder / "2.safetensors", state_of("cd"));
  folder.write("model.safetensors.index.json",
               R"({"metadata": {"total_size": 1, "more": {"a": [1]}}, "weight_map":
                   {"b": "1.safetensors", "d": "2.safetensors", "a": "1.safetensors",
                    "c": "2.safetensors"}})");
  EXPECT_EQ(names_of(load_folder(folder.path())), "badc")
      << "x is not listed, total_size is ignored";
}

TEST(LoadFolder, FollowsLinksToRegularFiles) {
  const TemporaryFolder folder, cache;
  save_safetensors(cache / "blob", state_of("a"));
  std::filesystem::create_symlink(cache / "blob", folder / "model.safetensors");
  EXPECT_EQ(names_of(load_folder(folder.path())), "a");
}

TEST(LoadFolder, NamesInAnIndexStayInTheFolder) {
  const TemporaryFolder outer;
  save_safetensors(outer / "x.safetensors", state_of("a"));
  std::filesystem::create_directory(outer / "inner");
  save_safetensors(outer / "inner/x.safetensors", state_of("a"));
  std::filesystem::create_directory(outer / "inner/sub");
  const std::string absolute = outer / "x.safetensors";
  for (const std::string& name :
       {std::string("../x.safetensors"), absolute, std::string("sub/../../x.safetensors"),
        std::string("./x.safetensors"), std::string("sub/../x.safetensors"), std::string(".."),
        std::string("."), std::string(""), std::string("..\\\\x.safetensors"),
        std::string("x.safetensors\\u0000.png"), std::string("x\\nsafetensors"),
        std::string("\\u001b[2J"), std::string(300, 'x')}) {
    outer.write("inner/model.safetensors.index.json", R"({"weight_map": {"a": ")" + name + "\"}}");
    SCOPED_TRACE(name);
    EXPECT_THAT(error_of(Fault::data, [&] { load_folder(outer / "inner"); }),
                HasSubstr("only the names of files beside the index"));
  }
}

TEST(LoadFolder, RefusesABrokenIndex) {
  const TemporaryFolder folder;
  save_safetensors(folder / "1.safetensors", state_of("ab"));
  save_safetensors(folder / "2.safetensors", state_of("bc"));
  ::mkfifo((folder / "pipe").c_str(), 0600);
  std::filesystem::create_directory(folder / "folder");
  std::filesystem::create_symlink(folder / "pipe", folder / "link");
  struct Case {
    std::string index, says;
  };
  const auto map = [](const std::string& entries) { return "{\"weight_map\": {" + entries + "}}"; };
  const Case cases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "expected an object"},
      {"{}", "lists no tensors"},
      {"{\"weight_map\": {}}", "lists no tensors"},
      {"{\"weight_map\": []}", "must be an object"},
      {"{\"weight_map\": \"1.safetensors\"}", "must be an object"},
      {map("\"a\": 1"), "must have the name of a file"},
      {map("\"a\": [\"1.safetensors\"]"), "must have the name of a file"},
      {map("\"a\": {\"1.safetensors\": 1}"), "must have the name of a file"},
      {map("\"a\": \"1.safetensors\", \"a\": \"1.safetensors\""), "appears twice"},
      {map("\"z\": \"1.safetensors\""), "lacks tensor \"z\""},
      {map("\"a\": \"3.safetensors\""), "cannot be opened"},
      {map("\"a\": \"folder\""), "not a regular file"},
      {map("\"a\": \"pipe\""), "not a regular file"},
      {map("\"a\": \"link\""), "not a regular file"},
      {map("\"a\": \"/dev/zero\""), "only the names"},
      {map("\"a\": \"1.safetensors\", \"b\": \"1.safetensors\", \"c\": \"2.safetensors\""),
       "\"b\" is also in"},
      {std::string(17 << 20, ' '), "larger than"},
  };
  for (const auto& [index, says] : cases) {
    folder.write("model.safetensors.index.json", index);
    EXPECT_THAT(error_of(Fault::data, [&] { load_folder(folder.path()); }), HasSubstr(says))
        << index.substr(0, 80);
  }
}

/// Bytes of files that this process has in memory by mapping them.
std::int64_t mapped_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  std::int64_t kibibytes = 0;
  while (status >> word)
    if (word == "RssFile:") status >> kibibytes;
  return kibibytes * 1024;
}

TEST(LoadFolder, ReadingTensorByTensorNeverHoldsTheWholeFile) {
  constexpr std::int64_t kTensor = 4 << 20, kCount = 8;
  const TemporaryFolder folder;
  {
    StateDict state;
    for (std::int64_t i = 0; i < kCount; ++i)
      state.add(std::to_string(i), torch::ones({kTensor}, torch::kUInt8));
    save_safetensors(folder / "model.safetensors", state);
    save_torch_file(folder / "model.bin", state);
  }
  for (const auto* name : {"model.safetensors", "model.bin"}) {
    StateDict state = load_file(folder / name);
    torch::ones({1}, torch::kUInt8).sum();  // the code for it is in memory from here on
    const auto before = mapped_bytes();
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < kCount; ++i) {
      sum += state.at(std::to_string(i)).sum().item<std::int64_t>();
      state.remove(std::to_string(i));
      EXPECT_LT(mapped_bytes() - before, 2 * kTensor) << name << " " << i;
    }
    EXPECT_EQ(sum, kTensor * kCount);
  }
}

}  // namespace
}  // namespace llava::weights
