#include "llava/input/batch.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::input {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Picture picture(std::uint8_t color, std::int64_t tiles, std::int64_t rows) {
  Picture picture;
  picture.shape = {.image_width = 2, .image_height = 2, .grid_width = tiles - 1, .grid_height = 1};
  picture.rows = rows;
  picture.side = 2;
  picture.pixels.assign(static_cast<std::size_t>(tiles * 12), color);
  return picture;
}

Example example(const std::string& id, std::vector<std::int64_t> ids,
                std::vector<Picture> pictures = {}) {
  Example example;
  example.id = id;
  example.labels = ids;
  for (auto& label : example.labels)
    if (label == kImageToken) label = kIgnore;
  example.ids = std::move(ids);
  example.pictures = std::move(pictures);
  return example;
}

std::vector<std::int64_t> values(const torch::Tensor& t) {
  return {t.const_data_ptr<std::int64_t>(), t.const_data_ptr<std::int64_t>() + t.numel()};
}

TEST(Collate, LaysRowsEndToEndAndFindsEveryPicture) {
  const auto batch =
      collate({example("a", {1, kImageToken, 5}, {picture(7, 3, 9)}), example("b", {1, 6}),
               example("c", {kImageToken, kImageToken, 8}, {picture(8, 1, 4), picture(9, 2, 6)})});
  EXPECT_THAT(batch.starts, ElementsAre(0, 3, 5, 8));
  EXPECT_THAT(values(batch.ids), ElementsAre(1, kImageToken, 5, 1, 6, kImageToken, kImageToken, 8));
  EXPECT_THAT(values(batch.labels), ElementsAre(1, kIgnore, 5, 1, 6, kIgnore, kIgnore, 8));
  EXPECT_THAT(batch.example_ids, ElementsAre("a", "b", "c"));
  ASSERT_EQ(batch.pictures.size(), 3u);
  const std::int64_t slots[] = {1, 5, 6}, tiles[] = {0, 3, 4}, rows[] = {9, 4, 6};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(batch.pictures[i].slot, slots[i]);
    EXPECT_EQ(batch.pictures[i].first_tile, tiles[i]);
    EXPECT_EQ(batch.pictures[i].rows, rows[i]);
  }
  ASSERT_EQ(batch.tiles.sizes(), (std::vector<std::int64_t>{6, 3, 2, 2}));
  const std::uint8_t colors[] = {7, 7, 7, 8, 9, 9};
  for (std::int64_t i = 0; i < 6; ++i)
    EXPECT_TRUE(batch.tiles[i].eq(colors[i]).all().item<bool>()) << i;
  EXPECT_EQ(batch.rows(), 3);
  EXPECT_EQ(batch.num_tokens(), 8 - 3 + 9 + 4 + 6);
}

TEST(Collate, TextAloneHasNoTiles) {
  const auto batch = collate({example("a", {1, 2})});
  EXPECT_FALSE(batch.tiles.defined());
  EXPECT_EQ(batch.to(torch::kCPU).rows(), 1);
  EXPECT_FALSE(batch.to(torch::kCPU).tiles.defined());
}

// The first label of a row has nothing before it to predict it from.
TEST(Batch, CountsWhatIsLearned) {
  auto second = example("b", {3, 4, 5});
  second.labels[1] = kIgnore;
  EXPECT_EQ(collate({example("a", {1, 2}), second}).num_learned(), 2);
}

TEST(Collate, RefusesTilesOfDifferentSizeNamingTheSample) {
  auto large = picture(1, 1, 1);
  large.side = 4;
  large.pixels.resize(48);
  const auto message = support::error_of(Fault::data, [&] {
    collate(
        {example("a", {kImageToken}, {picture(1, 1, 1)}), example("wide", {kImageToken}, {large})});
  });
  EXPECT_THAT(message, HasSubstr("\"wide\""));
}

TEST(Collate, RefusesAPictureWithoutItsPixelsOrItsMark) {
  auto empty = picture(1, 1, 1);
  empty.pixels.clear();
  EXPECT_THAT(
      support::error_of(Fault::data, [&] { collate({example("x", {kImageToken}, {empty})}); }),
      HasSubstr("0 bytes instead of 12"));
  EXPECT_THAT(
      support::error_of(Fault::data, [&] { collate({example("y", {1}, {picture(1, 1, 1)})}); }),
      HasSubstr("\"y\" has more pictures than marks"));
}

}  // namespace
}  // namespace llava::input
