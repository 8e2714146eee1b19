#include "video_file.h"

#include "source.h"

#include "llava/base/check.h"

#if !defined(LLAVA_HAVE_FFMPEG)

namespace llava::media {

bool has_video_files() { return false; }

VideoShape measure_video_file(const std::string& path, const VideoOptions&) {
  fail(Fault::data, path,
       ": reading video files is not compiled in; give a folder of frames, or install FFmpeg's "
       "libraries with scripts/setup.sh and build again");
}

Video load_video_file(const std::string& path, const VideoOptions& options) {
  measure_video_file(path, options);
  return {};
}

}  // namespace llava::media

#else

#include "llava/base/files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libswscale/swscale.h>
}

namespace llava::media {
namespace {

template <auto release>
struct Release {
  template <class T>
  void operator()(T* pointer) const {
    release(&pointer);
  }
};
using Packet = std::unique_ptr<AVPacket, Release<av_packet_free> >;
using Frame = std::unique_ptr<AVFrame, Release<av_frame_free> >;
using Codec = std::unique_ptr<AVCodecContext, Release<avcodec_free_context> >;
using Format = std::unique_ptr<AVFormatContext, Release<avformat_close_input> >;

/// The mapped file as FFmpeg reads it, so that no protocol of FFmpeg's is ever used.
struct Input {
  MappedFile file;
  std::int64_t position = 0;
  AVIOContext* context = nullptr;

  explicit Input(const std::string& path) : file(path) {
    constexpr int kBuffer = 1 << 16;
    context = avio_alloc_context(static_cast<unsigned char*>(av_malloc(kBuffer)), kBuffer, 0, this,
                                 read, nullptr, seek);
  }
  ~Input() {
    if (context) av_freep(&context->buffer);
    avio_context_free(&context);
  }
  Input(const Input&) = delete;

  static int read(void* self, std::uint8_t* target, int count) {
    auto& input = *static_cast<Input*>(self);
    const auto left = static_cast<std::int64_t>(input.file.size()) - input.position;
    if (left <= 0) return AVERROR_EOF;
    count = static_cast<int>(std::min<std::int64_t>(count, left));
    std::memcpy(target, input.file.data() + input.position, count);
    input.position += count;
    return count;
  }
  static std::int64_t seek(void* self, std::int64_t offset, int whence) {
    auto& input = *static_cast<Input*>(self);
    const auto size = static_cast<std::int64_t>(input.file.size());
    whence &= ~AVSEEK_FORCE;
    if (whence == AVSEEK_SIZE) return size;
    if (whence == SEEK_CUR) offset += input.position;
    if (whence == SEEK_END) offset += size;
    if (offset < 0 || offset > size) return AVERROR(EINVAL);
    return input.position = offset;
  }
};

int refuse(AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) {
  return AVERROR(EPERM);  // a playlist may not open other files
}

/// A file opened for decoding its best video stream.
struct Reader {
  const Source source;
  Input input;
  Format format;
  Codec codec;
  AVStream* stream = nullptr;

  explicit Reader(const std::string& path) : source{{}, path}, input(path) {
    av_log_set_level(AV_LOG_QUIET);
    AVFormatContext* opened = avformat_alloc_context();
    source.expect(opened && input.context, "no memory for reading the video");
    opened->pb = input.context;
    opened->io_open = refuse;
    check(avformat_open_input(&opened, nullptr, nullptr, nullptr), "open it as a video");
    format.reset(opened);
    check(avformat_find_stream_info(format.get(), nullptr), "find its streams");
    const AVCodec* decoder = nullptr;
    const int best = av_find_best_stream(format.get(), AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    check(best, "find a video stream with a known codec");
    stream = format->streams[best];
    codec.reset(avcodec_alloc_context3(decoder));
    check(avcodec_parameters_to_context(codec.get(), stream->codecpar), "set up its codec");
    codec->thread_count = 1;
    check(avcodec_open2(codec.get(), decoder, nullptr), "open its codec");
  }

  void check(int result, const char* what) const {
    if (result >= 0) return;
    char reason[AV_ERROR_MAX_STRING_SIZE];
    av_strerror(result, reason, sizeof reason);
    source.fail("cannot ", what, ": ", reason);
  }

  /// The next packet of the stream; false at the end.
  bool next(AVPacket* packet) const {
    for (;;) {
      av_packet_unref(packet);
      if (av_read_frame(format.get(), packet) < 0) return false;
      if (packet->stream_index == stream->index) return true;
    }
  }

  /// Clockwise quarter turns that the container asks for.
  int quarter_turns() const {
    const auto* matrix = reinterpret_cast<const std::int32_t*>(
        av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr));
    if (!matrix) return 0;
    const double degrees = -av_display_rotation_get(matrix);
    return std::isfinite(degrees) ? (static_cast<int>(std::lround(degrees / 90)) % 4 + 4) % 4 : 0;
  }
};

/// When each frame is shown, in order: in the stream's unit, or counted where the file does not
/// say.
struct FrameIndex {
  std::vector<std::int64_t> times;
  bool timed = true;
};

FrameIndex index_frames(const Reader& reader) {
  const Packet packet(av_packet_alloc());
  FrameIndex index;
  while (reader.next(packet.get())) {
    index.timed = index.timed && packet->pts != AV_NOPTS_VALUE;
    index.times.push_back(packet->pts);
  }
  if (!index.timed) std::iota(index.times.begin(), index.times.end(), 0);
  std::sort(index.times.begin(), index.times.end());
  return index;
}

/// As FFmpeg's scale filter converts, through which decord goes: by the matrix and range that the
/// frame names, BT.601 and the pixel format's range where it does not.
void set_colours(SwsContext* scaler, const AVFrame& frame) {
  int *from = nullptr, *to = nullptr;
  int from_full = 0, to_full = 0, brightness = 0, contrast = 0, saturation = 0;
  if (sws_getColorspaceDetails(scaler, &from, &from_full, &to, &to_full, &brightness, &contrast,
                               &saturation) < 0)
    return;  // no YUV
  if (frame.color_range != AVCOL_RANGE_UNSPECIFIED)
    from_full = frame.color_range == AVCOL_RANGE_JPEG;
  const bool known = frame.colorspace >= 1 && frame.colorspace <= 10 && frame.colorspace != 8;
  sws_setColorspaceDetails(scaler, sws_getCoefficients(known ? frame.colorspace : SWS_CS_DEFAULT),
                           from_full, to, to_full, brightness, contrast, saturation);
}

Image to_image(const Reader& reader, const AVFrame& frame, const ImageOptions& options) {
  const std::int64_t most = std::min(options.max_pixels, options.max_bytes / 3);
  reader.source.expect(frame.width >= 1 && frame.height >= 1 && frame.width <= most / frame.height,
                       "a frame has ", frame.width, "x", frame.height, " pixels, the limit is ",
                       most, " in all");
  const std::unique_ptr<SwsContext, decltype(&sws_freeContext)> scaler(
      sws_getContext(frame.width, frame.height, static_cast<AVPixelFormat>(frame.format),
                     frame.width, frame.height, AV_PIX_FMT_RGB24, SWS_BICUBIC, nullptr, nullptr,
                     nullptr),
      sws_freeContext);
  reader.source.expect(scaler != nullptr, "frames of its pixel format cannot be converted");
  set_colours(scaler.get(), frame);
  // swscale's fast path, whose bytes differ from its slow one's, needs aligned rows.
  const Frame target(av_frame_alloc());
  target->width = frame.width;
  target->height = frame.height;
  target->format = AV_PIX_FMT_RGB24;
  reader.check(av_frame_get_buffer(target.get(), 0), "find memory for a frame");
  sws_scale(scaler.get(), frame.data, frame.linesize, 0, frame.height, target->data,
            target->linesize);
  Image image{frame.width, frame.height, {}};
  const std::size_t row_bytes = std::size_t{3} * frame.width;
  image.rgb.resize(row_bytes * frame.height);
  for (int y = 0; y < frame.height; ++y)
    std::memcpy(image.rgb.data() + y * row_bytes,
                target->data[0] + static_cast<std::ptrdiff_t>(y) * target->linesize[0], row_bytes);
  constexpr int kOrientation[] = {1, 6, 3, 8};
  return oriented(std::move(image), kOrientation[reader.quarter_turns()]);
}

/// Decodes in order and gives, for each wanted time (ascending), the frame shown then.
std::vector<Image> decode(const std::string& path, const std::vector<std::int64_t>& wanted,
                          bool timed, const ImageOptions& options) {
  const Reader reader(path);
  const Packet packet(av_packet_alloc());
  Frame next(av_frame_alloc()), shown(av_frame_alloc());
  std::vector<Image> images;
  std::int64_t ordinal = 0;
  const auto show = [&](bool last) {  // `shown` until `next`, or for good
    const auto until = timed ? next->best_effort_timestamp : ordinal - 1;
    if (!shown->width) return;
    std::size_t count = 0;
    while (images.size() < wanted.size() && (last || wanted[images.size()] < until))
      images.push_back(count++ ? images.back() : to_image(reader, *shown, options));
  };
  for (bool more = true; more && images.size() < wanted.size();) {
    more = reader.next(packet.get());
    if (avcodec_send_packet(reader.codec.get(), more ? packet.get() : nullptr) < 0 && more)
      continue;  // a damaged packet
    while (avcodec_receive_frame(reader.codec.get(), next.get()) >= 0) {
      ++ordinal;
      show(false);
      std::swap(next, shown);
      av_frame_unref(next.get());
    }
  }
  show(true);
  reader.source.expect(images.size() == wanted.size(), "none of its frames can be decoded");
  return images;
}

/// Which frames are taken, told from the file's packets alone.
struct Plan {
  VideoShape shape;
  std::vector<std::int64_t> wanted;  // times, in the stream's unit
  std::vector<double> seconds;
  bool timed;
  double duration;
};

Plan plan_frames(const std::string& path, const VideoOptions& options) {
  const Reader reader(path);
  const FrameIndex index = index_frames(reader);
  const double fps = av_q2d(reader.stream->avg_frame_rate);
  reader.source.expect(!index.times.empty(), "the video has no frames");
  reader.source.expect(std::isfinite(fps) && fps > 0, "the video does not say its frame rate");
  const std::int64_t width = reader.codec->width, height = reader.codec->height;
  reader.source.expect(width >= 1 && height >= 1, "its frames have no size");
  const auto total = static_cast<std::int64_t>(index.times.size());
  FrameChoice choice = choose_frames(total, fps, options.frames, options.frames > 0);
  const auto frames = static_cast<std::int64_t>(choice.frames.size());
  expect(frames <= 4 * options.image.max_pixels / (width * height), Fault::data, path, ": ", frames,
         " frames of ", width, "x", height,
         " are too many pixels together; take fewer with --video_frames");
  const bool sideways = reader.quarter_turns() % 2 != 0;
  Plan plan{{sideways ? height : width, sideways ? width : height, frames},
            {},
            std::move(choice.seconds),
            index.timed,
            static_cast<double>(total) / fps};
  for (const std::int64_t frame : choice.frames) plan.wanted.push_back(index.times[frame]);
  return plan;
}

}  // namespace

bool has_video_files() { return true; }

Video load_video_file(const std::string& path, const VideoOptions& options) {
  const Plan plan = plan_frames(path, options);
  return {decode(path, plan.wanted, plan.timed, options.image), plan.seconds, plan.duration};
}

VideoShape measure_video_file(const std::string& path, const VideoOptions& options) {
  return plan_frames(path, options).shape;
}

}  // namespace llava::media

#endif
