#include "llava/data/sample.h"

#include "set.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava::data {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

Record record(const Json& json) { return parse_record(json.dump(), {"set.json", 7, 1}); }

TEST(LoadExample, SeveralPicturesOfASampleArePaddedNotTiled) {
  const TemporaryFolder folder;
  folder.write("wide.ppm", ppm(60, 20));
  auto config = small_encoder().config();
  config.tiling.aspect = media::Aspect::anyres;
  config.tiling.pinpoints = {{28, 56}, {56, 28}};
  config.merge.spatial = true;
  const input::Encoder encoder(small_encoder().tokenizer(), small_encoder().chat(), config);
  MediaConfig media{.image_folder = folder.path()};
  const auto one = record(sample("a", {"<image>\nWhat?", "x"}, "wide.ppm"));
  const auto two = record(sample("b", {"<image> or <image>?", "x"}, {"wide.ppm", "wide.ppm"}));
  const auto tiles = [&](const Record& record) {
    const auto example = load_example(record, encoder, media);
    EXPECT_EQ(measure_example(record, encoder, media).num_tokens(), example.num_tokens());
    return example.pictures[0].tiles();
  };
  EXPECT_EQ(tiles(one), 3);
  EXPECT_EQ(tiles(two), 1);
  media.pad_groups = false;
  EXPECT_EQ(tiles(two), 3);
}

TEST(LoadExample, AVideoIsAFolderOfFrames) {
  const TemporaryFolder folder;
  for (int i = 0; i < 4; ++i)
    folder.write("clips/v/" + std::to_string(i) + ".ppm", ppm(30, 30, 50 * i));
  auto json = sample("v", {"<image>\nWhat happens?", "It gets bright."});
  json["video"] = "v";
  MediaConfig media;
  media.video_folder = folder / "clips";
  const auto all = load_example(record(json), small_encoder(), media);
  ASSERT_EQ(all.pictures.size(), 1u);
  EXPECT_EQ(all.pictures[0].frames, 4);
  EXPECT_EQ(measure_example(record(json), small_encoder(), media).num_tokens(), all.num_tokens());
  media.video_frames = 2;
  EXPECT_EQ(load_example(record(json), small_encoder(), media).pictures[0].frames, 2);

  json["conversations"][0]["value"] = "<video>\nWhat happens?";
  EXPECT_EQ(load_example(record(json), small_encoder(), media).pictures[0].frames, 2);
}

TEST(LoadExample, NamesSampleAndFileInEveryError) {
  const TemporaryFolder folder;
  folder.write("bad.jpg", "no image");
  const MediaConfig media{.image_folder = folder.path()};
  const auto error = [&](const Json& json) {
    return error_of(Fault::data, [&] { load_example(record(json), small_encoder(), media); });
  };
  const auto named = StartsWith("set.json:7: sample \"s\": ");
  EXPECT_THAT(error(sample("s", {"<image>", "x"}, "bad.jpg")), AllOf(named, HasSubstr("bad.jpg")));
  EXPECT_THAT(error(sample("s", {"<image>", "x"}, "none.jpg")),
              AllOf(named, HasSubstr("none.jpg")));
  EXPECT_THAT(error(sample("s", {"Hi", "x"}, "bad.jpg")), named);
  EXPECT_THAT(error(sample("s", {"<image>", "x"}, "../x.jpg")), AllOf(named, HasSubstr("outside")));
}

TEST(Placed, ALoneMarkMovesToTheFrontAndSeveralStay) {
  const auto& chat = text::find_template("v1");
  const auto first_turn = [&](const Json& json) {
    return placed(record(json), chat).messages[0].text;
  };
  EXPECT_EQ(first_turn(sample("a", {" What is <image> ? ", "x"}, "a.jpg")), "<image>\nWhat is  ?");
  EXPECT_EQ(first_turn(sample("a", {"<image> and <image>?", "x"}, {"a.jpg", "b.jpg"})),
            "<image> and <image>?");
  EXPECT_EQ(first_turn(sample("a", {" <image> in HTML ", "x"})), " <image> in HTML ");
}

TEST(ReadImageHeader, FindsASizeThatStandsFarBack) {
  // A PPM's comments come before its size.
  const TemporaryFolder folder;
  for (const int bytes : {10, 5000, 300'000}) {
    const auto path =
        folder.write("a.ppm", "P6\n#" + std::string(static_cast<std::size_t>(bytes), 'c') +
                                  "\n3 2 255\n" + std::string(18, 'x'));
    const auto header = read_image_header(path, {});
    EXPECT_EQ(header.width, 3) << bytes;
    EXPECT_EQ(header.height, 2);
  }
  const auto broken = folder.write("b.ppm", std::string(10'000, 'z'));
  EXPECT_THAT(error_of(Fault::data, [&] { read_image_header(broken, {}); }), HasSubstr("b.ppm"));
}

TEST(ImagePath, MayNotLeaveTheImageFolder) {
  Record record;
  record.where = "set.json:7: sample \"s\"";
  EXPECT_EQ(image_path(record, "a/b.jpg", {.image_folder = "/data"}), "/data/a/b.jpg");
  for (const auto& name : std::vector<std::string>{
           "../x.jpg", "a/../../x.jpg", "/etc/passwd", "", "a/..", {"a\0b", 3}})
    EXPECT_THAT(error_of(Fault::data, [&] { image_path(record, name, {.image_folder = "/data"}); }),
                StartsWith("set.json:7: sample \"s\": image"));
}

TEST(CountWords, SplitsAsPythonDoes) {
  EXPECT_EQ(count_words(""), 0);
  EXPECT_EQ(count_words(" \t\n"), 0);
  EXPECT_EQ(count_words(" one  two\nthree "), 3);
  EXPECT_EQ(count_words("a\u00a0b\u3000c\u2028d\u0085e\x1f"
                        "f"),
            6);
  EXPECT_EQ(count_words("caf\u00e9 na\u00efve \u200b x\u180ey"),
            4);  // zero-width ones are no space
}

}  // namespace
}  // namespace llava::data
