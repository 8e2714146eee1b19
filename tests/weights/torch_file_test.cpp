#include "llava/weights/torch_file.h"

#include "llava/base/config.h"
#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weights/bytes.h"

#include <gtest/gtest.h>

namespace llava::weights {
namespace {

using support::error_of;
using testing::HasSubstr;

const std::string kGolden = LLAVA_GOLDEN;

TEST(TorchFile, ReadsEveryDtypeOfZipAndLegacyFiles) {
  for (const auto* name : {"every_dtype.bin", "every_dtype_legacy.bin"}) {
    const auto state = load_torch_file(kGolden + "/" + name);
    EXPECT_EQ(state.size(), 19) << name;
    for (const auto& [key, tensor] : state) {
      EXPECT_EQ(tensor.sizes(), torch::IntArrayRef({2, 3})) << name << " " << key;
      EXPECT_EQ(text_of(tensor), text_of(counting(6, tensor.scalar_type(), {2, 3}))) << key;
    }
    EXPECT_EQ(state.at("t.bfloat16").scalar_type(), torch::kBFloat16);
    EXPECT_EQ(state.at("t.float8_e8m0fnu").scalar_type(), torch::kFloat8_e8m0fnu);
  }
}

TEST(TorchFile, ReadsScalarsEmptyTensorsAndAnyName) {
  for (const auto* name : {"awkward.bin", "awkward_legacy.bin"}) {
    const auto state = load_torch_file(kGolden + "/" + name);
    EXPECT_EQ(state.at("scalar").item<float>(), 1.5f);
    EXPECT_EQ(state.at("scalar").dim(), 0);
    EXPECT_EQ(state.at("empty").sizes(), torch::IntArrayRef({0, 4}));
    EXPECT_EQ(text_of(state.at("row")), text_of(counting(5, torch::kUInt8, {5})));
    EXPECT_TRUE(state.contains("tab\tnewline\nbell\x07"));
    EXPECT_TRUE(state.contains("größe 図"));
  }
}

TEST(TorchFile, KeepsStridesAndSharesStorages) {
  for (const auto* name : {"views.bin", "views_legacy.bin"}) {
    const auto state = load_torch_file(kGolden + "/" + name);
    const auto base = torch::arange(24, torch::kFloat).reshape({4, 6});
    EXPECT_TRUE(state.at("base").equal(base));
    EXPECT_TRUE(state.at("transposed").equal(base.t()));
    EXPECT_EQ(state.at("transposed").strides(), torch::IntArrayRef({1, 6}));
    EXPECT_TRUE(state.at("column").equal(base.select(1, 2)));
    EXPECT_TRUE(state.at("corner").equal(base.slice(0, 1, 3).slice(1, 4)));
    EXPECT_EQ(state.at("base").data_ptr(), state.at("transposed").data_ptr());
    EXPECT_EQ(state.at("tied.a").data_ptr(), state.at("tied.b").data_ptr());
  }
}

TEST(TorchFile, ReadsAnOrderedDictWithMetadata) {
  const Json want = read_json(kGolden + "/module.json");
  for (const auto* name : {"module.bin", "module_legacy.bin"}) {
    const auto state = load_torch_file(kGolden + "/" + name);
    EXPECT_EQ(state.size(), want.size());
    for (const auto& [key, values] : want.items()) {
      const auto list = values.get<std::vector<float>>();
      EXPECT_TRUE(state.at(key).flatten().equal(torch::tensor(list))) << name << " " << key;
    }
  }
}

TEST(TorchFile, ReadsParametersWrappedDictsAndProtocolFour) {
  EXPECT_EQ(load_torch_file(kGolden + "/parameters.bin").at("weight").sizes(),
            torch::IntArrayRef({1, 2}));
  const auto nested = load_torch_file(kGolden + "/nested.bin");
  EXPECT_EQ(nested.size(), 1);
  EXPECT_TRUE(nested.at("x").equal(torch::ones({2})));
  EXPECT_TRUE(
      load_torch_file(kGolden + "/protocol4.bin").at("only").equal(torch::full({2, 2}, 3.0)));
}

TEST(TorchFile, TensorsOutliveTheStateAndAreWritableInMemoryAlone) {
  const auto before = read_file(kGolden + "/views.bin");
  auto base = load_torch_file(kGolden + "/views.bin").at("base");
  base.fill_(1);
  EXPECT_EQ(base.sum().item<float>(), 24);
  EXPECT_EQ(read_file(kGolden + "/views.bin"), before);
}

TEST(TorchFile, WhatIsWrittenIsReadBack) {
  const support::TemporaryFolder folder;
  for (const auto* name : {"every_dtype.bin", "awkward.bin", "views.bin"}) {
    const auto state = load_torch_file(kGolden + "/" + name);
    save_torch_file(folder / "copy.bin", state);
    const auto copy = load_torch_file(folder / "copy.bin");
    EXPECT_EQ(copy.size(), state.size());
    auto want = state.begin();
    for (const auto& [key, tensor] : copy) {
      EXPECT_EQ(key, want->first);
      EXPECT_EQ(tensor.sizes(), want->second.sizes());
      EXPECT_EQ(tensor.scalar_type(), want->second.scalar_type());
      EXPECT_TRUE(tensor.is_contiguous());
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 64, 0)
          << "aligned as PyTorch's";
      EXPECT_EQ(text_of(tensor), text_of(want->second.contiguous())) << key;
      ++want;
    }
  }
  const auto tied = load_torch_file(folder / "copy.bin");
  EXPECT_EQ(tied.at("tied.a").data_ptr(), tied.at("tied.b").data_ptr());
}

}  // namespace
}  // namespace llava::weights
