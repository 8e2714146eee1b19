#include "llava/media/image.h"

#include "llava/base/files.h"
#include "llava/media/tiles.h"
#include "support/digests.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>

#include <fstream>
#include <random>

namespace llava::media {
namespace {

using support::bytes_of;
using support::crc32;
using support::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kFolder = std::string(LLAVA_GOLDEN) + "/";

struct Golden {
  std::string file;
  std::int64_t width, height, turned_width, turned_height;
  std::uint32_t crc, turned_crc;
};

std::vector<Golden> goldens() {
  std::vector<Golden> rows;
  std::ifstream list(kFolder + "images.txt");
  Golden row;
  while (list >> row.file >> row.width >> row.height >> std::hex >> row.crc >> std::dec >>
         row.turned_width >> row.turned_height >> std::hex >> row.turned_crc >> std::dec)
    rows.push_back(row);
  return rows;
}

std::string decode_error(const std::string& bytes, const ImageOptions& options = {}) {
  return error_of(Fault::data, [&] { decode_image(bytes, "picture", options); });
}

std::string golden(const std::string& file) { return read_file(kFolder + file); }

TEST(Image, GoldenFilesDecodeAsInPillow) {
  const auto rows = goldens();
  ASSERT_GT(rows.size(), 100u);
  for (const Golden& row : rows) {
    SCOPED_TRACE(row.file);
    const Image image = load_image(kFolder + row.file);
    EXPECT_EQ(image.width, row.width);
    EXPECT_EQ(image.height, row.height);
    EXPECT_EQ(crc32(bytes_of(image.rgb)), row.crc);
    const ImageHeader header = read_header(golden(row.file), row.file);
    EXPECT_EQ(header.width, row.width);
    EXPECT_EQ(header.height, row.height);

    const ImageOptions turn{.apply_exif = true};
    const Image turned = load_image(kFolder + row.file, turn);
    EXPECT_EQ(turned.width, row.turned_width);
    EXPECT_EQ(turned.height, row.turned_height);
    EXPECT_EQ(crc32(bytes_of(turned.rgb)), row.turned_crc);
    EXPECT_EQ(read_header(golden(row.file), row.file, turn).width, row.turned_width);
  }
}

TEST(Image, PixelsAreThoseWorkedOutByHand) {
  EXPECT_EQ(crc32(bytes_of(load_image(kFolder + "reference.jpg").rgb)), 0xdd067accu);
  EXPECT_THAT(
      load_image(kFolder + "gray16_edges.png").rgb,
      ElementsAre(0, 0, 0, 1, 1, 1, 200, 200, 200, 255, 255, 255, 255, 255, 255, 255, 255, 255));
  EXPECT_THAT(load_image(kFolder + "rgb16_edges.png").rgb, ElementsAre(0, 1, 128));
  EXPECT_THAT(load_image(kFolder + "hidden_colour.png").rgb, ElementsAre(200, 100, 50, 1, 2, 3));
  EXPECT_THAT(decode_image("P4 3 1 \x40", "bits").rgb,
              ElementsAre(255, 255, 255, 0, 0, 0, 255, 255, 255));
  EXPECT_THAT(decode_image("P2 2 1 65535 200 256 ", "gray").rgb,
              ElementsAre(200, 200, 200, 255, 255, 255));
}

TEST(Image, FormatComesFromTheContent) {
  for (const auto& [file, format] : {std::pair{"420.jpg", "jpeg"},
                                     {"tower.png", "png"},
                                     {"lossy.webp", "webp"},
                                     {"rgb.bmp", "bmp"},
                                     {"gray.gif", "gif"},
                                     {"la.tga", "tga"},
                                     {"p6_255.ppm", "ppm"}})
    EXPECT_EQ(read_header(golden(file), "picture.txt").format, format);
  EXPECT_THAT(image_formats(), ElementsAre("jpeg", "png", "webp", "bmp", "gif", "ppm", "tga"));
  for (const std::string text :
       {"<html>", "%PDF-1.7", "P", "P7\n", "{}", "\xff\xd8", "RIFF1234WAVE"})
    EXPECT_THAT(decode_error(text),
                HasSubstr("picture: not an image of a known format (JPEG, PNG"));
  EXPECT_THAT(decode_error(""), HasSubstr("picture: the file is empty"));
  EXPECT_THAT(error_of(Fault::data, [] { load_image("/nowhere/cat.jpg"); }),
              HasSubstr("/nowhere/cat.jpg"));
}

TEST(Image, EveryBeginningOfAFileIsAnError) {
  for (const std::string file :
       {"420.jpg", "420_progressive.jpg", "restart.jpg", "cmyk.jpg", "type2_8bit.png",
        "type3_4bit_interlaced.png", "gray16_edges.png", "lossy.webp", "alpha_lossless.webp",
        "animated.webp", "colours256.gif", "rgb.bmp", "palette.bmp", "p6_65535.ppm", "p3_1.ppm"}) {
    SCOPED_TRACE(file);
    const std::string bytes = golden(file);
    // Behind the last pixel: padding of BMP rows, the end mark of GIF, white space.
    const std::size_t rest = file.ends_with(".bmp") || file.ends_with(".gif") ? 3 : 1;
    for (std::size_t count = 0; count + rest < bytes.size(); ++count)
      EXPECT_THAT(decode_error(bytes.substr(0, count)),
                  HasSubstr("replace the file or leave it out"))
          << count;
  }
}

void put(std::string& bytes, std::size_t at, std::uint32_t value, int count, bool big) {
  for (int i = 0; i < count; ++i)
    bytes[at + i] = static_cast<char>(value >> 8 * (big ? count - 1 - i : i));
}

std::string with_size(const std::string& file, std::size_t at, std::uint32_t width,
                      std::uint32_t height, int count, bool big) {
  std::string bytes = golden(file);
  put(bytes, at, width, count, big);
  put(bytes, at + count, height, count, big);
  return bytes;
}

TEST(Image, LyingHeadersAreRefusedBeforeMemoryIsTaken) {
  std::string jpeg = golden("gray.jpg");
  const std::size_t frame = jpeg.find("\xff\xc0") + 5;
  put(jpeg, frame, 65500, 2, true);
  put(jpeg, frame + 2, 65500, 2, true);
  EXPECT_THAT(decode_error(jpeg), AllOf(HasSubstr("the jpeg header says 65500x65500 pixels"),
                                        HasSubstr("the limit is 178956970 in all")));
  put(jpeg, frame, 2700, 2, true);
  EXPECT_THAT(decode_error(jpeg), HasSubstr("65500x2700 pixels, too many for a file of"));

  // libpng checks the header's checksum first.
  std::string png = with_size("type2_8bit.png", 16, 13000, 13000, 4, true);
  EXPECT_THAT(decode_error(png), HasSubstr("cannot read as PNG: IHDR: CRC error"));
  put(png, 29, crc32(std::string_view(png).substr(12, 17)), 4, true);
  EXPECT_THAT(decode_error(png), HasSubstr("13000x13000 pixels, too many for a file of"));
  put(png, 16, 0x7fffffff, 4, true);
  put(png, 29, crc32(std::string_view(png).substr(12, 17)), 4, true);
  EXPECT_THAT(decode_error(png), HasSubstr("2147483647x13000 pixels, the limit is"));

  EXPECT_THAT(decode_error(with_size("colours256.gif", 6, 65535, 65535, 2, false)),
              HasSubstr("the gif header says 65535x65535"));
  EXPECT_THAT(decode_error(with_size("rgb.bmp", 18, 0x7fffffff, 0x7fffffff, 4, false)),
              HasSubstr("the bmp header says 2147483647x2147483647"));
  EXPECT_THAT(decode_error(with_size("rgb.bmp", 18, 60000, 1, 4, false)), HasSubstr("ends early"));
  EXPECT_THAT(decode_error(with_size("rgb.tga", 12, 65535, 2000, 2, false)),
              HasSubstr("65535x2000 pixels, too many"));
  EXPECT_THAT(decode_error("P6 99999999 99999999 255 "), HasSubstr("99999999x99999999"));
  EXPECT_THAT(decode_error("P6 999999999999999999999 1 255 "), HasSubstr("no number at byte"));
  EXPECT_THAT(decode_error("P6 0 1 255 "), HasSubstr("0x1 pixels"));
  EXPECT_THAT(decode_error("P5 1000001 1 255 "), HasSubstr("1000000 a side"));
  EXPECT_THAT(decode_error(golden("420.jpg"), {.max_pixels = 37 * 26 - 1}),
              HasSubstr("37x26 pixels, the limit is 961 in all"));
  EXPECT_EQ(decode_image(golden("420.jpg"), "", {.max_pixels = 37 * 26}).width, 37);
}

// The pixels take 37 * 26 * 3 = 2886 bytes; what is kept beside them is the decoder's own.
TEST(Image, MemoryOfADecodeIsKnownBeforehand) {
  const auto limit = [](const char* file, std::int64_t bytes, bool exif = false) {
    return decode_error(golden(file), {.apply_exif = exif, .max_bytes = bytes});
  };
  const auto fits = [](const char* file, std::int64_t bytes) {
    return decode_image(golden(file), file, {.max_bytes = bytes}).width;
  };
  EXPECT_EQ(fits("420.jpg", 2886), 37);
  EXPECT_THAT(limit("420.jpg", 2885),
              HasSubstr("the jpeg picture of 37x26 pixels takes 1 MiB, the limit is 0"));
  EXPECT_THAT(limit("420_progressive.jpg", 2886 + 30 * 64), HasSubstr("--image_memory"));
  for (const Golden& row : goldens()) {
    const std::string bytes = golden(row.file);
    const ImageHeader header = read_header(bytes, row.file);
    const std::int64_t pixels = 3 * header.width * header.height;
    EXPECT_THROW(decode_image(bytes, row.file, {.max_bytes = pixels - 1}), Error) << row.file;
    EXPECT_THROW(read_header(bytes, row.file, {.max_bytes = pixels - 1}), Error) << row.file;
  }
  EXPECT_EQ(ImageFlags{}.options().max_bytes, std::int64_t{240} << 20);
  EXPECT_TRUE((ImageFlags{.exif = "apply"}.options().apply_exif));
  EXPECT_THAT(error_of(Fault::usage, [] { ImageFlags{.exif = "yes"}.options(); }),
              HasSubstr("--exif: expected apply or ignore"));
  EXPECT_THAT(error_of(Fault::usage, [] { ImageFlags{.image_memory = 0}.options(); }),
              HasSubstr("--image_memory 0"));
}

TEST(Image, ThinPictureIsReadButNotPadded) {
  const Image tower = load_image(kFolder + "tower.png");
  EXPECT_EQ(tower.height, 60000);
  TilingConfig config;
  EXPECT_EQ(make_tiles(tower, config).pixels.size(), 3u * 336 * 336);
  config.aspect = Aspect::pad;
  EXPECT_THAT(error_of(Fault::data, [&] { make_tiles(tower, config); }),
              HasSubstr("1x60000 padded to a square has more than 178956970 pixels"));
}

TEST(Image, ManyScansAreRefused) {
  std::string bytes = golden("420_progressive.jpg");
  const std::size_t scan = bytes.rfind("\xff\xda");
  const std::string last = bytes.substr(scan, bytes.size() - 2 - scan);
  bytes.resize(bytes.size() - 2);
  for (int i = 0; i < 100; ++i) bytes += last;
  bytes += "\xff\xd9";
  EXPECT_THAT(decode_error(bytes), HasSubstr("more than 64 scans"));
}

TEST(Image, UnusualJpegsAreRefusedByName) {
  std::string bytes = golden("gray.jpg");
  const std::size_t frame = bytes.find("\xff\xc0");
  std::string twelve_bits = bytes;
  twelve_bits[frame + 4] = 12;
  EXPECT_THAT(decode_error(twelve_bits), HasSubstr("data precision 12"));
  std::string lossless = bytes;
  lossless[frame + 1] = '\xc3';
  EXPECT_THAT(decode_error(lossless), HasSubstr("SOF type 0xc3"));
}

// Damage anywhere gives an Error or a picture of the header's size, the same each time, and not a
// word on stderr.
TEST(Image, DamagedFilesNeverDoHarm) {
  std::mt19937 random(11);
  const auto pick = [&](std::size_t below) { return random() % below; };
  const ImageOptions small{.apply_exif = true, .max_pixels = 100'000};
  int errors = 0, pictures = 0;
  ::testing::internal::CaptureStderr();
  for (const Golden& row : goldens()) {
    const std::string original = golden(row.file);
    for (int round = 0; round < 20; ++round) {
      std::string bytes = original;
      for (std::size_t i = 0, edits = 1 + pick(4); i < edits && !bytes.empty(); ++i) {
        const std::size_t at = pick(bytes.size());
        switch (pick(5)) {
          case 0: bytes[at] = static_cast<char>(1u << pick(8) ^ bytes[at]); break;
          case 1: bytes[at] = static_cast<char>(pick(2) ? 0xff : 0); break;
          case 2: bytes[at] = static_cast<char>(random()); break;
          case 3: bytes.erase(at, 1 + pick(8)); break;
          case 4: bytes.insert(at, bytes.substr(pick(bytes.size()), 1 + pick(16))); break;
        }
      }
      std::string verdicts[2];
      for (std::string& verdict : verdicts) try {
          const Image image = decode_image(bytes, "mutant", small);
          const ImageHeader header = read_header(bytes, "mutant", small);
          EXPECT_EQ(image.width, header.width) << row.file;
          EXPECT_EQ(image.height, header.height) << row.file;
          EXPECT_EQ(image.rgb.size(), 3u * image.width * image.height) << row.file;
          verdict = std::to_string(crc32(bytes_of(image.rgb)));
          ++pictures;
        } catch (const Error& error) {
          EXPECT_EQ(error.fault(), Fault::data);
          verdict = error.what();
          ++errors;
        }
      EXPECT_EQ(verdicts[0], verdicts[1]) << row.file;
    }
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_GT(errors, 1000);
  EXPECT_GT(pictures, 1000);
}

TEST(Exif, DamagedDirectoriesMeanNoTurn) {
  const std::string bytes = golden("exif_6.jpg");
  const std::size_t tiff = bytes.find("Exif") + 6;
  const ImageOptions turn{.apply_exif = true};
  EXPECT_EQ(read_header(bytes, "", turn).width, 5);
  for (std::size_t at = tiff; at < tiff + 26; ++at)
    for (const char value : {'\0', '\xff', '\x7f'}) {
      std::string damaged = bytes;
      damaged[at] = value;
      const std::int64_t width = read_header(damaged, "", turn).width;
      EXPECT_TRUE(width == 5 || width == 7) << at;
    }
}

}  // namespace
}  // namespace llava::media
