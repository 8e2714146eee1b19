#include "llava/media/video.h"

#include <gmock/gmock.h>

namespace llava::media {
namespace {

using ::testing::ElementsAre;
using Frames = std::vector<std::int64_t>;

TEST(ChooseFrames, SpreadsAsNumpysLinspace) {
  const auto spread = [](std::int64_t total, std::int64_t limit) {
    return choose_frames(total, 30, 1, limit, true).frames;
  };
  EXPECT_THAT(spread(100, 8), ElementsAre(0, 14, 28, 42, 56, 70, 84, 99));
  EXPECT_EQ(spread(300, 32), (Frames{0,   9,   19,  28,  38,  48,  57,  67,  77,  86,  96,
                                     106, 115, 125, 135, 144, 154, 163, 173, 183, 192, 202,
                                     212, 221, 231, 241, 250, 260, 270, 279, 289, 299}));
  EXPECT_EQ(spread(50, 32),
            (Frames{0,  1,  3,  4,  6,  7,  9,  11, 12, 14, 15, 17, 18, 20, 22, 23,
                    25, 26, 28, 30, 31, 33, 34, 36, 37, 39, 41, 42, 44, 45, 47, 49}));
  const Frames inexact = spread(154, 64);  // 51, 102, 119 in exact arithmetic
  EXPECT_EQ(inexact[21], 50);
  EXPECT_EQ(inexact[42], 101);
  EXPECT_EQ(inexact[49], 118);
  EXPECT_THAT(spread(5, 8), ElementsAre(0, 0, 1, 1, 2, 2, 3, 4));
  EXPECT_THAT(spread(9, 1), ElementsAre(0));
}

TEST(ChooseFrames, TimesComeFromTheRoundedRateUnlessSpread) {
  const FrameChoice second = choose_frames(300, 29.97, 1, 32, false);
  EXPECT_THAT(second.frames, ElementsAre(0, 30, 60, 90, 120, 150, 180, 210, 240, 270));
  EXPECT_THAT(second.seconds, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));

  const FrameChoice limited = choose_frames(300, 29.97, 1, 8, false);
  EXPECT_THAT(limited.frames, ElementsAre(0, 42, 85, 128, 170, 213, 256, 299));
  EXPECT_NEAR(limited.seconds[1], 1.40, 0.005);
  EXPECT_NEAR(limited.seconds[7], 9.98, 0.005);

  const FrameChoice forced = choose_frames(120, 23.976, 1, 4, true);
  EXPECT_THAT(forced.frames, ElementsAre(0, 39, 79, 119));
  EXPECT_NEAR(forced.seconds[3], 4.96, 0.005);

  const FrameChoice half = choose_frames(75, 12.5, 1, 32, false);  // 12.5 rounds to 12
  EXPECT_THAT(half.frames, ElementsAre(0, 12, 24, 36, 48, 60, 72));
  EXPECT_THAT(half.seconds, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

}  // namespace
}  // namespace llava::media
