// Frames of a video as images: a file through FFmpeg's libraries, or a folder of frames.
// Frames are chosen as the reference chooses them.
// Source: LLaVA-VL/LLaVA-NeXT, llava/utils.py, process_video_with_decord; dmlc/decord,
// src/video/video_reader.cc.
#pragma once

#include "llava/media/image.h"

#include <cstdint>

namespace llava::media {

struct VideoOptions {
  std::int64_t frames = 0;  // this many, evenly spread (a shorter video's frames repeat);
                            // 0: one a second of a file, all of a folder
  ImageOptions image{};  // limits hold for each frame; all frames together get four times as much
};

struct Video {
  std::vector<Image> frames;
  std::vector<double> seconds;  // when each was shown
  double duration = 0;          // seconds
};

/// Throws Error(data) naming the file or frame, or saying that video files are not compiled in.
/// A folder's frames are its image files in order of their names, two a second.
Video load_video(const std::string& path, const VideoOptions& options = {});

/// What load_video would give, without decoding: a file's packets are counted, of a folder the
/// first frame's header is read. `width` and `height` are the first frame's.
struct VideoShape {
  std::int64_t width = 0, height = 0, frames = 0;
};
VideoShape measure_video(const std::string& path, const VideoOptions& options = {});

bool has_video_files();  // whether FFmpeg's libraries are compiled in

/// Which of `total` frames are taken, and when each is shown.
struct FrameChoice {
  std::vector<std::int64_t> frames;
  std::vector<double> seconds;
};

/// One frame a second; `limit` frames evenly spread instead when a limit above 0 allows fewer, or
/// when `spread`.  Throws Error(usage) for a total below 1 or an fps that is not above 0.
FrameChoice choose_frames(std::int64_t total, double fps, std::int64_t limit, bool spread);

}  // namespace llava::media
