// A model from init through both layouts and back, each step checked by the program itself.
#include "llava/base/config.h"
#include "support/program.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using support::llava;
using testing::HasSubstr;

TEST(Convert, VerifiesEachLayoutOfPadAndAnyresModels) {
  for (const char* aspect : {"pad", "anyres"}) {
    const support::TemporaryFolder folder;
    const auto made = llava({"init", "--shape", "tiny", "--image_aspect_ratio", aspect,
                             "--output_dir", folder / "model", "--quiet"});
    ASSERT_EQ(made.exit, 0) << made.err;
    const auto convert = [&](const std::string& from, const char* to, const std::string& out) {
      return llava({"convert", "-m", folder / from, "--to", to, "--output_dir", folder / out,
                    "--verify", "--json", "--quiet"});
    };
    // The two layouts have vocabularies of different sizes.
    for (const auto& done :
         {convert("model", "llava", "original"), convert("original", "llava-hf", "again"),
          convert("again", "llava", "back")}) {
      EXPECT_EQ(done.exit, 0) << aspect << ": " << done.err;
      EXPECT_THAT(done.out, HasSubstr("\"logit_error\": 0.0"));
    }
    EXPECT_THAT(llava({"inspect", folder / "again", "--json"}).out,
                HasSubstr("\"layout\": \"llava-hf\""));
  }
}

TEST(Convert, PrintsOneObjectWhateverItMakes) {
  const support::TemporaryFolder folder;
  ASSERT_EQ(llava({"init", "--shape", "tiny", "--output_dir", folder / "model"}).exit, 0);
  for (const std::string to : {"llava-hf", "llava", "projector"}) {
    const auto done = llava({"convert", "-m", folder / "model", "--to", to, "--output_dir",
                             folder / to, "--json", "--quiet"});
    ASSERT_EQ(done.exit, 0) << done.err;
    const auto json = parse_json(done.out, "stdout");
    EXPECT_EQ(json["to"], to);
    EXPECT_TRUE(json["logit_error"].is_null());
  }
}

}  // namespace
}  // namespace llava
