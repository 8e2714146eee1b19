// Frames of a video as images: a file through FFmpeg's libraries, or a folder of frames.
#pragma once

#include "llava/media/image.h"

#include <cstdint>

namespace llava::media {

struct VideoOptions {
  std::int64_t frames = 0;      // at most this many, evenly spread; 0: one a second (files), all (folders)
  ImageOptions image;
};

struct Video {
  std::vector<Image> frames;
  std::vector<double> seconds;  // when each was shown
  double duration = 0;          // seconds
};

/// Throws Error(data) naming the file or frame, or saying that video files are not compiled in.
Video load_video(const std::string& path, const VideoOptions& options = {});

bool has_video_files();  // whether FFmpeg's libraries are compiled in

}  // namespace llava::media
