// WebP through libwebp; of an animation the first frame on a black canvas, as Pillow shows it.
#include "source.h"

#include <webp/decode.h>
#include <webp/demux.h>
#include <memory>

namespace llava::media {
namespace {

struct Open {
  WebPDemuxer* demuxer;
  explicit Open(const Source& source) {
    const WebPData data{reinterpret_cast<const std::uint8_t*>(source.bytes.data()),
                        source.bytes.size()};
    demuxer = WebPDemux(&data);
    source.expect(demuxer != nullptr, "cannot read as WebP: the file is damaged or ends early");
  }
  ~Open() { WebPDemuxDelete(demuxer); }
  Open(const Open&) = delete;
};

/// Bytes a pixel that libwebp keeps: a lossless picture whole, as it does a lossy one's alpha.
std::int64_t bytes_beside(const WebPIterator& frame) {
  WebPBitstreamFeatures features;
  const bool known =
      WebPGetFeatures(frame.fragment.bytes, frame.fragment.size, &features) == VP8_STATUS_OK;
  const bool lossy = known && features.format == 1;
  return lossy ? (features.has_alpha ? 5 : 0) : 4;
}

Size webp_size(const Source& source) {
  const Open open(source);
  const std::int64_t width = WebPDemuxGetI(open.demuxer, WEBP_FF_CANVAS_WIDTH),
                     height = WebPDemuxGetI(open.demuxer, WEBP_FF_CANVAS_HEIGHT);
  WebPIterator frame;
  std::int64_t beside = 0;
  if (WebPDemuxGetFrame(open.demuxer, 1, &frame))
    beside = bytes_beside(frame) * frame.width * frame.height;
  WebPDemuxReleaseIterator(&frame);
  return {width, height, beside};
}

void decode_webp(const Source& source, Image& image) {
  const Open open(source);
  WebPIterator frame;
  source.expect(WebPDemuxGetFrame(open.demuxer, 1, &frame), "the WebP file has no frame");
  const std::int64_t stride = 3 * image.width;
  const std::size_t offset = frame.y_offset * stride + std::int64_t{3} * frame.x_offset;
  const bool inside =
      frame.x_offset + frame.width <= image.width && frame.y_offset + frame.height <= image.height;
  const bool decoded =
      inside &&
      WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, image.rgb.data() + offset,
                        image.rgb.size() - offset, static_cast<int>(stride)) != nullptr;
  WebPDemuxReleaseIterator(&frame);
  source.expect(decoded, "cannot read as WebP: the picture is damaged");
}

}  // namespace

const Decoder kWebp{"webp", 0,
                    [](std::string_view bytes) {
                      return bytes.size() >= 12 && bytes.starts_with("RIFF") &&
                             bytes.substr(8, 4) == "WEBP";
                    },
                    webp_size, decode_webp};

}  // namespace llava::media
