#include "parity.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace llava {
namespace {

// The promise is 1e-4 absolute on logits and 1e-5 relative on features; here both run the same
// kernels on tiny models, so that a wrong order of operations shows.
constexpr double kLogits = 5e-6, kFeatures = 2e-6;
// One unit in the last place of bfloat16 at the logits' size, twice.
constexpr double kLogitsBfloat16 = 8e-3, kFeaturesBfloat16 = 2e-2;

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& item : std::filesystem::directory_iterator(LLAVA_GOLDEN))
    if (item.is_directory()) names.push_back(item.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class Parity : public testing::TestWithParam<std::string> {};

TEST_P(Parity, EqualsTransformers) {
  test::ParityCase given(std::string(LLAVA_GOLDEN) + "/" + GetParam());
  const bool is_bfloat16 = given.dtype == "bfloat16";
  torch::NoGradGuard no_grad;

  const auto spliced = given.model->embed(given.batch);
  EXPECT_EQ(spliced.starts, given.starts);
  for (std::size_t i = 0; i < given.planned_rows.size(); ++i)
    EXPECT_EQ(given.batch.pictures[i].rows, given.planned_rows[i]) << "picture " << i;

  const auto features = given.model->vision_features(given.model->pixel_values(given.batch.tiles));
  EXPECT_LE(test::relative_distance(features, given.expected.at("vision_features")),
            is_bfloat16 ? kFeaturesBfloat16 : kFeatures);
  const auto rows = torch::cat(given.model->image_features(features, given.batch.pictures));
  EXPECT_LE(test::relative_distance(rows, given.expected.at("image_features")),
            is_bfloat16 ? kFeaturesBfloat16 : kFeatures);
  EXPECT_LE(test::distance(given.logits(), given.expected.at("logits")),
            is_bfloat16 ? kLogitsBfloat16 : kLogits);
}

INSTANTIATE_TEST_SUITE_P(Families, Parity, testing::ValuesIn(case_names()), [](const auto& info) {
  auto name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace llava
