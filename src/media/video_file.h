// Video files through FFmpeg's libraries; everything that mentions them is in video_file.cpp.
#pragma once

#include "llava/media/video.h"

namespace llava::media {

/// Throws Error(data) where the libraries are not compiled in.
Video load_video_file(const std::string& path, const VideoOptions& options);
VideoShape measure_video_file(const std::string& path, const VideoOptions& options);

}  // namespace llava::media
