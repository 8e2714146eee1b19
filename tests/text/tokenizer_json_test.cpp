// tokenizer.json against what Hugging Face's library makes of the same files.
#include "folder.h"
#include "llava/base/config.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::text {
namespace {

using Ids = std::vector<std::int64_t>;

const Json& recorded() {
  static const Json json = read_json(LLAVA_GOLDEN "/hugging_face.json");
  return json;
}

Tokenizer load_kind(const std::string& name) { return Tokenizer::load(LLAVA_GOLDEN "/" + name); }

TEST(TokenizerJson, EncodesAsTheLibraryDoes) {
  for (const auto& [name, kind] : recorded()["kinds"].items()) {
    const auto tokenizer = load_kind(name);
    EXPECT_EQ(tokenizer.size(), kind["size"]) << name;
    const auto& texts = recorded()["texts"];
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto text = texts[i].get<std::string>();
      EXPECT_EQ(tokenizer.ids(text), kind["ids"][i].get<Ids>()) << name << " " << texts[i].dump();
    }
  }
}

TEST(TokenizerJson, DecodesAsTheLibraryDoes) {
  for (const auto& [name, kind] : recorded()["kinds"].items()) {
    const auto tokenizer = load_kind(name);
    for (const auto& row : kind["decode"]) {
      const auto ids = row[0].get<Ids>();
      // A broken run of byte pieces is U+FFFD for every byte there, for the broken bytes alone
      // here.
      if (name.starts_with("pieces") && row[1].dump().find("\uFFFD") != std::string::npos) continue;
      EXPECT_EQ(tokenizer.decode(ids), row[1].get<std::string>()) << name << " " << row[0];
      EXPECT_EQ(tokenizer.decode(ids, false), row[2].get<std::string>()) << name << " " << row[0];
    }
  }
}

}  // namespace
}  // namespace llava::text
