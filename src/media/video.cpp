#include "llava/media/video.h"

#include "video_file.h"

#include "llava/base/check.h"
#include "llava/base/files.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace llava::media {
namespace {

namespace fs = std::filesystem;

/// Source: LLaVA-NeXT, train.py, the folder-of-frames data sets.
constexpr double kFolderFps = 2;

std::vector<std::string> frame_files(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with('.') && entry->is_regular_file(error)) files.push_back(entry->path());
  }
  expect(!error, Fault::data, folder, ": cannot list the folder of frames: ", error.message());
  expect(!files.empty(), Fault::data, folder,
         ": the folder holds no frames; a video is a file or a folder of images");
  std::sort(files.begin(), files.end());
  return files;
}

FrameChoice choose_of_folder(std::int64_t total, std::int64_t limit) {
  if (limit > 0) return choose_frames(total, kFolderFps, limit, true);
  FrameChoice all;
  for (std::int64_t i = 0; i < total; ++i) {
    all.frames.push_back(i);
    all.seconds.push_back(static_cast<double>(i) / kFolderFps);
  }
  return all;
}

Video load_folder(const std::string& folder, const VideoOptions& options) {
  const std::vector<std::string> files = frame_files(folder);
  const auto total = static_cast<std::int64_t>(files.size());
  const FrameChoice choice = choose_of_folder(total, options.frames);
  Video video{{}, choice.seconds, static_cast<double>(total) / kFolderFps};
  std::int64_t pixels = 0;
  for (const std::int64_t frame : choice.frames) {
    video.frames.push_back(load_image(files[frame], options.image));
    pixels += video.frames.back().width * video.frames.back().height;
    expect(pixels <= 4 * options.image.max_pixels, Fault::data, folder,
           ": its frames have too many pixels together; take fewer with --video_frames");
  }
  return video;
}

VideoShape measure_folder(const std::string& folder, const VideoOptions& options) {
  const std::vector<std::string> files = frame_files(folder);
  const FrameChoice choice =
      choose_of_folder(static_cast<std::int64_t>(files.size()), options.frames);
  const std::string& file = files[choice.frames[0]];
  const ImageHeader first = read_header(read_file(file), file, options.image);
  return {first.width, first.height, static_cast<std::int64_t>(choice.frames.size())};
}

}  // namespace

FrameChoice choose_frames(std::int64_t total, double fps, std::int64_t limit, bool spread) {
  constexpr std::int64_t kMostFrames = 1'000'000;
  expect(total >= 1 && limit >= 0 && limit <= kMostFrames, Fault::usage, "cannot choose ", limit,
         " of ", total, " frames of a video");
  expect(std::isfinite(fps) && fps > 0, Fault::usage,
         "the frames a second of a video must be a positive number, found ", fps);
  FrameChoice choice;
  // Half to even, as Python rounds; the times of these frames come from the rounded rate.
  const double step = std::max(std::nearbyint(fps), 1.0);
  const auto count = static_cast<std::int64_t>(std::ceil(static_cast<double>(total) / step));
  if (limit > 0 && (spread || count > limit)) {
    // numpy.linspace(0, total - 1, limit, dtype=int): the step once, then multiplied, then cut.
    const double stride =
        limit > 1 ? static_cast<double>(total - 1) / static_cast<double>(limit - 1) : 0;
    for (std::int64_t i = 0; i < limit; ++i) {
      const bool last = i == limit - 1 && limit > 1;
      choice.frames.push_back(last ? total - 1
                                   : static_cast<std::int64_t>(static_cast<double>(i) * stride));
      choice.seconds.push_back(static_cast<double>(choice.frames.back()) / fps);
    }
    return choice;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    choice.frames.push_back(i * static_cast<std::int64_t>(step));
    choice.seconds.push_back(static_cast<double>(choice.frames.back()) / step);
  }
  return choice;
}

Video load_video(const std::string& path, const VideoOptions& options) {
  return fs::is_directory(path) ? load_folder(path, options) : load_video_file(path, options);
}

VideoShape measure_video(const std::string& path, const VideoOptions& options) {
  return fs::is_directory(path) ? measure_folder(path, options) : measure_video_file(path, options);
}

}  // namespace llava::media
