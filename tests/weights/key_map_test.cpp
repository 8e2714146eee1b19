#include "llava/weights/key_map.h"

#include <gtest/gtest.h>

namespace llava::weights {
namespace {

constexpr Rename kRules[] = {
    {"model.vision_tower.", "vision."},
    {"model.", "llama."},
    {"lm_head.", "lm_head."},
};

TEST(KeyMap, TheFirstRuleThatFitsWins) {
  EXPECT_EQ(renamed("model.vision_tower.x", kRules), "vision.x");
  EXPECT_EQ(renamed("model.norm.weight", kRules), "llama.norm.weight");
  EXPECT_EQ(renamed("lm_head.weight", kRules), "lm_head.weight");
  EXPECT_EQ(renamed("other.model.norm", kRules), std::nullopt);
  EXPECT_EQ(renamed("", kRules), std::nullopt);
}

TEST(KeyMap, ReadsBackwards) {
  for (const auto* name : {"model.vision_tower.x", "model.norm.weight", "lm_head.weight"})
    EXPECT_EQ(renamed_back(*renamed(name, kRules), kRules), name);
  EXPECT_EQ(renamed_back("model.norm.weight", kRules), std::nullopt);
}

}  // namespace
}  // namespace llava::weights
