#include "llava/weights/safetensors.h"

#include "llava/base/check.h"
#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"
#include "weights/bytes.h"

#include <gtest/gtest.h>

#include <cstring>

namespace llava::weights {
namespace {

const std::string kGolden = LLAVA_GOLDEN;

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
    const auto copy = folder / name;
    save_safetensors(copy, load_safetensors(kGolden + "/" + name));
    EXPECT_EQ(read_file(copy), read_file(kGolden + "/" + name)) << name;
  }
}

}  // namespace
}  // namespace llava::weights
