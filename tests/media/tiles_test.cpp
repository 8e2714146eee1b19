#include "llava/media/tiles.h"

#include "synthetic.h"

#include "support/digests.h"
#include "support/expect_error.h"

#include <gmock/gmock.h>

#include <algorithm>

namespace llava::media {
namespace {

using support::bytes_of;
using support::crc32;
using support::sha256;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<std::pair<std::int64_t, std::int64_t>> kNextGrids{
    {336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};

TilingConfig clip(Aspect aspect, std::int64_t side = 336) {
  TilingConfig config;
  config.aspect = aspect;
  config.tile = config.shortest_edge = side;
  config.pinpoints = kNextGrids;
  return config;
}

TilingConfig siglip(Aspect aspect, std::int64_t rows) {
  TilingConfig config = clip(aspect, 384);
  config.mean = config.std = {0.5, 0.5, 0.5};
  config.pinpoints.clear();
  for (std::int64_t i = 1; i <= rows; ++i)
    for (std::int64_t j = 1; j <= rows; ++j) config.pinpoints.emplace_back(i * 384, j * 384);
  return config;
}

/// CRC of one tile's bytes as interleaved RGB, the form in which they were recorded.
std::uint32_t tile_crc(const Tiles& tiles, std::int64_t tile) {
  const std::int64_t plane = tiles.side * tiles.side;
  const std::uint8_t* begin = tiles.pixels.data() + 3 * plane * tile;
  std::string rgb;
  for (std::int64_t i = 0; i < plane; ++i)
    for (int c = 0; c < 3; ++c) rgb += static_cast<char>(begin[c * plane + i]);
  return crc32(rgb);
}

std::vector<std::uint32_t> tile_crcs(const Tiles& tiles) {
  std::vector<std::uint32_t> crcs;
  for (std::int64_t i = 0; i < tiles.shape.tiles(); ++i) crcs.push_back(tile_crc(tiles, i));
  return crcs;
}

/// The first 16 digits of the SHA-256 of the normalised float32 values.
std::string normalized_sha(const Tiles& tiles, const TilingConfig& config) {
  const auto table = normalization_table(config);
  const std::size_t plane = tiles.side * tiles.side;
  std::vector<float> values;
  values.reserve(tiles.pixels.size());
  for (std::size_t i = 0; i < tiles.pixels.size(); ++i)
    values.push_back(table[i / plane % 3][tiles.pixels[i]]);
  return sha256(std::string(bytes_of(values))).substr(0, 16);
}

struct SquareRow {
  std::int64_t side, width, height;
  std::uint32_t crc;
  const char* sha;
};

void expect_rows(const std::vector<SquareRow>& rows, Aspect aspect) {
  for (const SquareRow& row : rows) {
    SCOPED_TRACE(::testing::Message() << row.width << "x" << row.height << " to " << row.side);
    const TilingConfig config = clip(aspect, row.side);
    const Tiles tiles = make_tiles(synthetic(row.width, row.height), config);
    EXPECT_EQ(tiles.shape.tiles(), 1);
    EXPECT_EQ(tiles.side, row.side);
    EXPECT_EQ(tile_crc(tiles, 0), row.crc);
    EXPECT_EQ(normalized_sha(tiles, config), row.sha);
  }
}

// The digests of this file were recorded from transformers' slow CLIP processor and LLaVA's
// mm_utils.py, restated on Pillow 9.4.0, 10.3.0 and 12.1 and numpy.
TEST(Tiles, SquareEqualsClipsProcessor) {
  expect_rows({{336, 640, 480, 0x68b6d086, "b7f9e1f620e1426b"},
               {336, 480, 640, 0x8d1c4b2f, "543926ef84030c41"},
               {336, 1024, 768, 0xee717163, "1ccc58f9c0b1c7f9"},
               {336, 100, 1000, 0xada577db, "7a2edff6af6aed59"},
               {336, 1000, 100, 0x07108ea0, "5bcaffc67c38edb0"},
               {336, 336, 336, 0xd7ab5711, "30f7777bcb7fa49c"},
               {336, 337, 336, 0xd7ab5711, "30f7777bcb7fa49c"},
               {336, 335, 500, 0xf9a3ad5f, "c8945c052f70ab5d"},
               {336, 50, 37, 0x3975af08, "f248db5e3b66e78e"},
               {336, 500, 375, 0xeea80c55, "31a4304a031304a2"},
               {336, 1000, 667, 0x15b6c6e6, "c6e54de0964ae36c"},
               {224, 640, 480, 0xcd0fcda0, "ade29912c961a615"},
               {224, 480, 640, 0xec948886, "e27ce65366031b03"},
               {224, 1024, 768, 0xd131f87c, "bd8e2356a70dd3dd"},
               {224, 100, 1000, 0x9dd13f28, "b5defb18f0d8044a"},
               {224, 336, 336, 0xebaf0fcf, "4d26e51e2706d8e8"},
               {224, 1000, 667, 0x743aefe3, "acf99e0905747574"}},
              Aspect::square);
}

TEST(Tiles, PadEqualsExpandToSquareAndClipsProcessor) {
  expect_rows({{336, 640, 480, 0x77bbd942, "6a793494158803b2"},
               {336, 480, 640, 0xe48c837c, "31039a5e70ade813"},
               {336, 1024, 768, 0x37dedfda, "32fa9d920e2e1656"},
               {336, 100, 1000, 0x20c6fc41, "ee683b87e8433de6"},
               {336, 1000, 100, 0xf4206215, "06b033057f5737af"},
               {336, 336, 336, 0xd7ab5711, "30f7777bcb7fa49c"},
               {336, 337, 336, 0xfa910242, "bc9a18638d4d27ea"},
               {336, 335, 500, 0x93fd5d29, "d4adb7a5ac414997"},
               {336, 50, 37, 0xa97caa47, "9d9924825469ce13"},
               {336, 500, 375, 0xcafe1332, "fd28ff787b8489f4"}},
              Aspect::pad);
  const TilingConfig config = siglip(Aspect::pad, 1);
  const Tiles wide = make_tiles(synthetic(640, 480), config);
  EXPECT_EQ(tile_crc(wide, 0), 0xf1652e6au);
  EXPECT_EQ(normalized_sha(wide, config), "600034b9955ad773");
  const Tiles tall = make_tiles(synthetic(100, 1000), config);
  EXPECT_EQ(tile_crc(tall, 0), 0x6a7272cbu);
  EXPECT_EQ(normalized_sha(tall, config), "d09964f7942346f6");
}

TEST(Tiles, AnyresEqualsTheReference) {
  struct Row {
    std::int64_t width, height, grid_width, grid_height;
    std::vector<std::uint32_t> crcs;
    const char* sha;
  };
  const Row kNext[] = {
      {640,
       480,
       2,
       2,
       {0xd7660b2e, 0x46c7e3e5, 0x492c08d3, 0x41244a67, 0xd876eeec},
       "7a927654821f6807"},
      {1024,
       768,
       2,
       2,
       {0x22189bcc, 0x0ef33aec, 0x65ca0fd7, 0xbc478519, 0xd6d91e64},
       "113fc3f751097982"},
      {100, 1000, 1, 3, {0x8c8af1f3, 0xbe85e04e, 0x7e21456b, 0xbfdc491c}, "b309e046a3424c42"},
      {1000, 100, 3, 1, {0x664a41ea, 0x9fb8b512, 0xb9e6cf27, 0x18a80b6d}, "ae607b0590fbd116"},
      {336, 336, 1, 2, {0xd7ab5711, 0xd75a937f, 0xf7b68797}, "5f3a26f94dcb6a5b"},
      {300, 200, 1, 2, {0xa897a76e, 0x6d4dea26, 0x25bd4c8c}, "a940f86368e46de5"},
      {500,
       375,
       2,
       2,
       {0x8aa3503b, 0x27ee47e2, 0xec3c250b, 0x407887ed, 0xd1490d18},
       "8125cd06c323b06c"},
      {672,
       672,
       2,
       2,
       {0x2f50e01e, 0xd7ab5711, 0x5c173543, 0xe470721d, 0x6fb4b9f6},
       "853e38cfa33577cc"},
      {1000,
       667,
       2,
       2,
       {0x2f420f74, 0xba556a57, 0xe4af45b9, 0xe6f6dae7, 0xca6626d7},
       "30f53ca6b6584b11"},
  };
  const Row kOneVision[] = {
      {640,
       480,
       2,
       2,
       {0x9aab3ffb, 0xf5367231, 0xfdf6bb3f, 0xe231f213, 0x9a58adfe},
       "9a1b2320fd910185"},
      {100, 1000, 1, 3, {0x62662fc0, 0xaae682ee, 0x1d116aca, 0xd7c4040b}, "00e8a095599c5227"},
      {384, 384, 1, 1, {0x67a9e1f0, 0x67a9e1f0}, "45c5dfe76bcce4a1"},
  };
  const auto check = [](const Row& row, const TilingConfig& config) {
    SCOPED_TRACE(::testing::Message() << row.width << "x" << row.height);
    const Tiles tiles = make_tiles(synthetic(row.width, row.height), config);
    EXPECT_EQ(tiles.shape.grid_width, row.grid_width);
    EXPECT_EQ(tiles.shape.grid_height, row.grid_height);
    EXPECT_EQ(tile_crcs(tiles), row.crcs);
    EXPECT_EQ(normalized_sha(tiles, config), row.sha);
  };
  for (const Row& row : kNext) check(row, clip(Aspect::anyres));
  for (const Row& row : kOneVision) check(row, siglip(Aspect::anyres, 6));
}

TEST(Tiles, CropLargerThanThePictureIsBlackAround) {
  TilingConfig config = clip(Aspect::square, 8);
  config.shortest_edge = 5;
  const Tiles tiles = make_tiles({5, 5, std::vector<std::uint8_t>(75, 255)}, config);
  for (std::int64_t i = 0; i < 3 * 64; ++i) {
    const std::int64_t y = i / 8 % 8, x = i % 8;
    EXPECT_EQ(tiles.pixels[i], x >= 2 && x <= 6 && y >= 2 && y <= 6 ? 255 : 0) << x << "," << y;
  }
}

TEST(Tiles, NormalizationTableEqualsTheReferenceBitForBit) {
  const auto table = normalization_table({});
  EXPECT_EQ(sha256(std::string(bytes_of(table))),
            "5d23c0b115c373c73875b37dce36aa6a54af484dd4332d5f9d07d6ebecb20900");
  EXPECT_EQ(table[0][0], -1.79226255f);
  EXPECT_EQ(table[1][116], -0.0111960042f);
  EXPECT_EQ(table[2][255], 2.14589691f);
  const auto half = normalization_table(siglip(Aspect::square, 1));
  EXPECT_EQ(sha256(std::string(bytes_of(half[1]))),
            "d15e8ce72284446496a6de66e8a4795818530b44cd2c3dd415077364535c3c1a");
}

TEST(Tiles, RefusesWhatWouldNotFit) {
  const auto message = [](const TilingConfig& config, std::int64_t width, std::int64_t height) {
    return support::error_of(Fault::data, [&] { tile_shape(width, height, config); });
  };
  EXPECT_THAT(message(clip(Aspect::pad), 1, 60'000),
              HasSubstr("1x60000 padded to a square has more than 178956970 pixels"));
  EXPECT_THAT(message(clip(Aspect::pad), 1'000'000, 1'000'000), HasSubstr("padded"));
  EXPECT_THAT(message(clip(Aspect::square), 0, 5), HasSubstr("0x5 pixels is out of range"));
  EXPECT_THAT(message(clip(Aspect::square, 20'000), 5, 5), HasSubstr("preprocessor_config.json"));
  TilingConfig config = clip(Aspect::anyres);
  config.shortest_edge = 224;
  EXPECT_THAT(message(config, 5, 5), HasSubstr("336 pixels needs the shortest edge 224"));
  config = clip(Aspect::anyres);
  config.pinpoints = {{336 * 100'000'000'000, 336}};
  EXPECT_THAT(message(config, 5, 5), HasSubstr("image_grid_pinpoints"));
  config.pinpoints = {{672, 336}, {std::int64_t{1} << 62, std::int64_t{1} << 62}};
  EXPECT_THAT(message(config, 5, 5), HasSubstr("4611686018427387904 is out of range"));
  config.pinpoints = {{-336, -336}};
  EXPECT_THAT(message(config, 5, 5), HasSubstr("-336, -336 is out of range"));
  config.pinpoints = {{336 * 1000, 336 * 1000}};
  EXPECT_THAT(message(config, 5, 5), HasSubstr("336000x336000 is more than 178956970 pixels"));
  config.pinpoints = {{500, 336}};
  EXPECT_THAT(message(config, 5, 5), HasSubstr("500x336 is no whole number of tiles of 336"));
  config.pinpoints.clear();
  EXPECT_THAT(message(config, 5, 5), HasSubstr("lists no grid"));
  config.std[1] = 0;
  EXPECT_THAT(support::error_of(Fault::data, [&] { normalization_table(config); }),
              HasSubstr("image_std 0"));
  // Thin pictures that stay small are welcome.
  EXPECT_EQ(make_tiles(synthetic(1, 60'000), clip(Aspect::square)).shape.tiles(), 1);
  EXPECT_EQ(make_tiles(synthetic(60'000, 1), clip(Aspect::anyres)).shape.tiles(), 3);
}

// ── Geometry ────────────────────────────────────────────────────────────────────────────────────

MergeConfig unpad_merge(std::int64_t side = 24, std::int64_t max_tiles = 0) {
  MergeConfig config;
  config.side = side;
  config.spatial = config.unpad = true;
  config.max_tiles = max_tiles;
  return config;
}

struct GeometryRow {
  std::int64_t width, height, grid_width, grid_height, rows, columns, total, hugging_face_total;
};

void expect_geometry(const GeometryRow& row, TilingConfig tiling, MergeConfig merge) {
  SCOPED_TRACE(::testing::Message() << row.width << "x" << row.height);
  const TileShape shape = tile_shape(row.width, row.height, tiling);
  EXPECT_EQ(shape.grid_width * tiling.tile, row.grid_width);
  EXPECT_EQ(shape.grid_height * tiling.tile, row.grid_height);
  EXPECT_THAT(merged_raster(shape, merge), ::testing::Pair(row.rows, row.columns));
  EXPECT_EQ(image_rows(shape, merge), row.total);
  tiling.height_first = merge.hugging_face = true;
  EXPECT_EQ(image_rows(tile_shape(row.width, row.height, tiling), merge), row.hugging_face_total);
}

TEST(Geometry, LlavaNextCountsTokens) {
  const GeometryRow kRows[] = {
      {640, 480, 672, 672, 36, 48, 2340, 2340},   {480, 640, 672, 672, 48, 36, 2352, 2352},
      {1024, 768, 672, 672, 36, 48, 2340, 2340},  {100, 1000, 336, 1008, 72, 8, 1224, 1224},
      {1000, 100, 1008, 336, 8, 72, 1160, 1160},  {336, 336, 336, 672, 24, 24, 1176, 1176},
      {300, 200, 336, 672, 16, 24, 976, 1464},    {200, 300, 336, 672, 36, 24, 1476, 984},
      {337, 336, 672, 336, 24, 24, 1176, 1176},   {672, 672, 672, 672, 48, 48, 2928, 2928},
      {1920, 1080, 672, 672, 28, 48, 1948, 1948}, {500, 375, 672, 672, 36, 48, 2340, 2340},
      {1000, 667, 672, 672, 32, 48, 2144, 2144},  {2000, 500, 1008, 336, 18, 72, 1890, 1890},
      {1008, 336, 1008, 336, 24, 72, 2328, 2328}, {336, 1008, 336, 1008, 72, 24, 2376, 2376},
      {352, 110, 672, 336, 14, 48, 1262, 1360},   {5000, 1, 336, 672, 0, 24, 576, 576},
      {1024, 899, 672, 672, 42, 48, 2634, 2634},
  };
  for (const GeometryRow& row : kRows) expect_geometry(row, clip(Aspect::anyres), unpad_merge());
}

TEST(Geometry, DoublePrecisionQuirksAreTheReferences) {
  const TilingConfig tiling = clip(Aspect::anyres);
  const auto total = [&](std::int64_t width, std::int64_t height) {
    return image_rows(tile_shape(width, height, tiling), unpad_merge());
  };
  EXPECT_THAT(best_grid(1133, 567, tiling), ::testing::Pair(672, 336));  // exactly: 672x672
  EXPECT_EQ(total(1133, 567), 1752);
  EXPECT_THAT(best_grid(1141, 570, tiling), ::testing::Pair(672, 336));  // exactly: 1008x336
  EXPECT_EQ(total(1128, 47), 722);
  EXPECT_EQ(total(88, 55), 926);
  EXPECT_EQ(total(25, 1), 576);
  EXPECT_EQ(total(1, 5000), 624);
  MergeConfig hugging_face = unpad_merge();
  hugging_face.hugging_face = true;
  EXPECT_EQ(image_rows(tile_shape(1128, 47, tiling), hugging_face), 868);
  const Crop crop = unpadded(tile_shape(1, 5000, tiling), unpad_merge());
  EXPECT_EQ(crop.bottom - crop.top, 48);
  EXPECT_EQ(crop.right - crop.left, 0);
}

TEST(Geometry, OneVisionShrinksTheRaster) {
  const GeometryRow kRows[] = {
      {384, 384, 384, 384, 27, 27, 1485, 1485},
      {300, 200, 384, 384, 19, 27, 1261, 1261},
      {640, 480, 768, 768, 40, 54, 2929, 2929},
      {480, 640, 768, 768, 54, 40, 2943, 2943},
      {1024, 768, 1152, 768, 54, 73, 4725, 4725},
      {1280, 720, 1536, 768, 54, 96, 5967, 5967},
      {1920, 1080, 1920, 1152, 60, 108, 7269, 7269},
      {100, 1000, 384, 1152, 81, 9, 1539, 1539},
      {1152, 1152, 1152, 1152, 81, 81, 7371, 7371},
      {1540, 1540, 1920, 1920, 80, 80, 7209, 7209},  // 81 with a plain floor
      {1537, 1537, 1920, 1920, 80, 80, 7209, 7209},
      {1920, 1920, 1920, 1920, 80, 80, 7209, 7209},
      {2304, 2304, 2304, 2304, 81, 81, 7371, 7371},
      {4000, 3000, 2304, 1920, 70, 93, 7309, 7309},
  };
  for (const GeometryRow& row : kRows)
    expect_geometry(row, siglip(Aspect::anyres, 6), unpad_merge(27, 9));
  const auto raster = [](std::int64_t width, std::int64_t height) {
    return merged_raster(tile_shape(width, height, siglip(Aspect::anyres, 6)), unpad_merge(27, 9));
  };
  EXPECT_THAT(raster(928, 1156), ::testing::Pair(89, 72));   // 90x72 with a plain floor
  EXPECT_THAT(raster(584, 1924), ::testing::Pair(145, 44));  // 145x45 with a plain floor
  EXPECT_EQ(image_rows(tile_shape(952, 1160, siglip(Aspect::anyres, 6)), unpad_merge(27, 9)), 8765);
}

TEST(Geometry, SiglipGridKeepsOneRowMoreForParity) {
  TilingConfig tiling = siglip(Aspect::anyres, 1);
  tiling.pinpoints = {{384, 768}, {768, 384}, {768, 768}, {1152, 384}, {384, 1152}};
  const auto total = [&](std::int64_t width, std::int64_t height) {
    return image_rows(tile_shape(width, height, tiling), unpad_merge(27));
  };
  EXPECT_EQ(total(640, 480), 2929);
  EXPECT_EQ(total(384, 384), 1513);
  EXPECT_EQ(total(1920, 1080), 2379);
}

TEST(Geometry, OtherMergesCountTokens) {
  const TileShape grid = tile_shape(640, 480, clip(Aspect::anyres));
  const TileShape single = tile_shape(640, 480, clip(Aspect::pad));
  MergeConfig merge;
  EXPECT_EQ(image_rows(grid, merge), 5 * 576);
  EXPECT_EQ(image_rows(single, merge), 576);
  merge.spatial = true;
  EXPECT_EQ(image_rows(grid, merge), 5 * 576);
  EXPECT_EQ(image_rows(single, merge), 576);
  EXPECT_EQ(image_rows(single, unpad_merge()), 577);
  MergeConfig class_token;
  class_token.class_token = true;
  EXPECT_EQ(image_rows(single, class_token), 577);
  class_token.class_only = true;
  EXPECT_EQ(image_rows(single, class_token), 1);
  EXPECT_EQ(video_rows(7, class_token), 7);
}

TEST(Geometry, VideosCountTokens) {
  using Newline = MergeConfig::Newline;
  using Pool = MergeConfig::Pool;
  struct Row {
    Newline newline;
    std::int64_t clip_32, siglip_64, bilinear_64;
  };
  constexpr Row kRows[] = {{Newline::grid, 4992, 11648, 13440},
                           {Newline::frame, 4640, 10880, 12608},
                           {Newline::one, 4609, 10817, 12545},
                           {Newline::none, 4608, 10816, 12544}};
  for (const Row& row : kRows) {
    const auto count = [&](std::int64_t frames, std::int64_t side, Pool pool) {
      MergeConfig merge;
      merge.side = side;
      merge.video_pool = pool;
      merge.video_newline = row.newline;
      return video_rows(frames, merge);
    };
    EXPECT_EQ(count(32, 24, Pool::average), row.clip_32);
    EXPECT_EQ(count(32, 24, Pool::bilinear), row.clip_32);
    EXPECT_EQ(count(64, 27, Pool::max), row.siglip_64);
    EXPECT_EQ(count(64, 27, Pool::bilinear), row.bilinear_64);
  }
  MergeConfig merge;
  EXPECT_EQ(video_rows(8, merge), 1152);  // LLaVA-NeXT-Video in transformers
  merge.side = 27;
  merge.video_pool = Pool::bilinear;
  merge.video_newline = Newline::one;
  EXPECT_EQ(video_rows(32, merge), 6273);  // OneVision in transformers
  merge.video_stride = 4;
  EXPECT_EQ(pooled_side(merge), 7);
  merge.video_pool = Pool::average;
  EXPECT_EQ(pooled_side(merge), 6);
}

}  // namespace
}  // namespace llava::media
