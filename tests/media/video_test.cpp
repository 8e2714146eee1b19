#include "llava/media/video.h"

#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>

namespace llava::media {
namespace {

using support::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Frames = std::vector<std::int64_t>;

TEST(ChooseFrames, SpreadsAsNumpysLinspace) {
  const auto spread = [](std::int64_t total, std::int64_t limit) {
    return choose_frames(total, 30, limit, true).frames;
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
  const FrameChoice second = choose_frames(300, 29.97, 32, false);
  EXPECT_THAT(second.frames, ElementsAre(0, 30, 60, 90, 120, 150, 180, 210, 240, 270));
  EXPECT_THAT(second.seconds, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));

  const FrameChoice limited = choose_frames(300, 29.97, 8, false);
  EXPECT_THAT(limited.frames, ElementsAre(0, 42, 85, 128, 170, 213, 256, 299));
  EXPECT_NEAR(limited.seconds[1], 1.40, 0.005);
  EXPECT_NEAR(limited.seconds[7], 9.98, 0.005);

  const FrameChoice forced = choose_frames(120, 23.976, 4, true);
  EXPECT_THAT(forced.frames, ElementsAre(0, 39, 79, 119));
  EXPECT_NEAR(forced.seconds[3], 4.96, 0.005);

  const FrameChoice half = choose_frames(75, 12.5, 32, false);  // 12.5 rounds to 12
  EXPECT_THAT(half.frames, ElementsAre(0, 12, 24, 36, 48, 60, 72));
  EXPECT_THAT(half.seconds, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

TEST(ChooseFrames, RefusesWhatMakesNoSense) {
  EXPECT_THAT(error_of(Fault::usage, [] { choose_frames(0, 30, 8, true); }), HasSubstr("of 0"));
  EXPECT_THAT(error_of(Fault::usage, [] { choose_frames(9, 30, -1, true); }), HasSubstr("-1"));
  EXPECT_THAT(error_of(Fault::usage, [] { choose_frames(9, 0, 8, true); }),
              HasSubstr("must be a positive number"));
  EXPECT_THAT(choose_frames(3, 0.2, 8, false).frames,
              ElementsAre(0, 1, 2));  // slower than one a second
}

/// A picture of one gray.
std::string gray_frame(int value) {
  return "P5 2 1 255 " + std::string(2, static_cast<char>(value));
}

std::vector<int> first_bytes(const Video& video) {
  std::vector<int> values;
  for (const Image& frame : video.frames) values.push_back(frame.rgb[0]);
  return values;
}

TEST(Video, FolderGivesItsImagesInOrderOfTheirNames) {
  const support::TemporaryFolder folder;
  for (const int i : {3, 0, 4, 1, 2})
    folder.write("frame_0" + std::to_string(i) + ".ppm", gray_frame(10 * i));
  folder.write(".hidden", "no picture");
  folder.write("deeper/frame.ppm", gray_frame(99));
  const Video all = load_video(folder.path());
  EXPECT_THAT(first_bytes(all), ElementsAre(0, 10, 20, 30, 40));
  EXPECT_THAT(all.seconds, ElementsAre(0, 0.5, 1, 1.5, 2));
  EXPECT_EQ(all.duration, 2.5);
  EXPECT_THAT(first_bytes(load_video(folder.path(), {.frames = 3})), ElementsAre(0, 20, 40));
  EXPECT_THAT(first_bytes(load_video(folder.path(), {.frames = 7})),
              ElementsAre(0, 0, 10, 20, 20, 30, 40));

  const auto expect_measured = [&](std::int64_t frames, std::int64_t want) {
    const VideoShape shape = measure_video(folder.path(), {.frames = frames});
    EXPECT_EQ(shape.frames, want);
    EXPECT_EQ(shape.width, 2);
    EXPECT_EQ(shape.height, 1);
  };
  expect_measured(0, 5);
  expect_measured(7, 7);

  folder.write("frame_05.ppm", "broken");
  expect_measured(0, 6);  // which only the first frame's header was read for
  EXPECT_THAT(error_of(Fault::data, [&] { load_video(folder.path()); }),
              HasSubstr("frame_05.ppm: not an image"));
  EXPECT_THAT(
      error_of(Fault::data,
               [&] { load_video(folder.path(), {.frames = 3, .image = {.max_pixels = 1}}); }),
      HasSubstr("frame_00.ppm: the ppm header says 2x1 pixels, the limit is 1"));
  const support::TemporaryFolder empty;
  EXPECT_THAT(error_of(Fault::data, [&] { load_video(empty.path()); }),
              HasSubstr("holds no frames"));
}

/// A YUV4MPEG2 file of gray frames whose luma is 16 + 10 i.
std::string gray_video(int frames, int fps) {
  std::string text = "YUV4MPEG2 W16 H8 F" + std::to_string(fps) + ":1 Ip A1:1 C420jpeg\n";
  for (int i = 0; i < frames; ++i)
    text += "FRAME\n" + std::string(16 * 8, static_cast<char>(16 + 10 * i)) +
            std::string(2 * 8 * 4, '\x80');
  return text;
}

TEST(Video, FileGivesFramesByTheirTimes) {
  const support::TemporaryFolder folder;
  const std::string path = folder.write("clip.y4m", gray_video(20, 5));
  if (!has_video_files()) {
    EXPECT_THAT(error_of(Fault::data, [&] { load_video(path); }), HasSubstr("not compiled in"));
    GTEST_SKIP() << "FFmpeg's libraries are not compiled in";
  }
  const auto expect_frames = [](const Video& video, const std::vector<int>& frames) {
    ASSERT_EQ(video.frames.size(), frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i) {
      EXPECT_EQ(video.frames[i].width, 16);
      EXPECT_EQ(video.frames[i].height, 8);
      for (const int byte : video.frames[i].rgb)  // BT.601: luma 16 to 235 is gray 0 to 255
        EXPECT_NEAR(byte, 10 * frames[i] * 255 / 219.0, 1.0);
    }
  };
  const Video seconds = load_video(path);
  expect_frames(seconds, {0, 5, 10, 15});
  EXPECT_THAT(seconds.seconds, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(seconds.duration, 4);
  const Video spread = load_video(path, {.frames = 3});
  expect_frames(spread, {0, 9, 19});
  EXPECT_THAT(spread.seconds, ElementsAre(0, 1.8, 3.8));
  expect_frames(load_video(path, {.frames = 1}), {0});
  for (const std::int64_t frames : {0, 1, 3}) {
    const VideoShape shape = measure_video(path, {.frames = frames});
    EXPECT_EQ(shape.frames, frames == 0 ? 4 : frames);
    EXPECT_EQ(shape.width, 16);
    EXPECT_EQ(shape.height, 8);
  }
}

TEST(Video, FilesThatAreNoVideosAreErrors) {
  const support::TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::data, [&] { load_video(folder / "missing.mp4"); }),
              HasSubstr("missing.mp4"));
  if (!has_video_files()) GTEST_SKIP() << "FFmpeg's libraries are not compiled in";
  const auto message = [&](const std::string& bytes, const VideoOptions& options = {}) {
    const std::string path = folder.write("clip.mp4", bytes);
    return error_of(Fault::data, [&] { load_video(path, options); });
  };
  EXPECT_THAT(message(""), HasSubstr("clip.mp4: cannot open it as a video"));
  EXPECT_THAT(message(std::string(5000, 'x')), HasSubstr("clip.mp4: cannot"));
  EXPECT_THAT(message(gray_video(0, 5)), HasSubstr("clip.mp4: "));
  EXPECT_THAT(message(gray_video(20, 5), {.image = {.max_pixels = 127}}),
              HasSubstr("take fewer with --video_frames"));
  // A playlist may not lead to other files.
  folder.write("clip.y4m", gray_video(3, 5));
  EXPECT_THAT(message("ffconcat version 1.0\nfile clip.y4m\n"), HasSubstr("clip.mp4: cannot"));
  EXPECT_THAT(message("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.y4m\n#EXT-X-ENDLIST\n"),
              HasSubstr("clip.mp4: cannot"));
}

TEST(Video, DamagedFilesNeverDoHarm) {
  if (!has_video_files()) GTEST_SKIP() << "FFmpeg's libraries are not compiled in";
  const support::TemporaryFolder folder;
  const std::string original = gray_video(6, 5);
  ::testing::internal::CaptureStderr();
  for (std::size_t round = 0; round < 150; ++round) {
    std::string bytes = original.substr(0, original.size() - round * 7 % original.size());
    bytes[round * 37 % 60] = static_cast<char>(round * 101);
    const std::string path = folder.write("clip.y4m", bytes);
    try {
      const Video video = load_video(path, {.frames = 2, .image = {.max_pixels = 100'000}});
      EXPECT_EQ(video.frames.size(), 2u);
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::data) << error.what();
    }
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace llava::media
