#include "llava/train/metrics.h"

#include "../../src/train/crc32c.h"
#include "../../src/train/event_file.h"
#include "llava/base/files.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gtest/gtest.h>

#include <cstring>

namespace llava::train {
namespace {

using support::error_of;
using support::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST(Crc32c, MatchesTheVectorsOfRfc3720) {
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string rising;
  for (char c = 0; c < 32; ++c) rising += c;
  EXPECT_EQ(crc32c(rising), 0x46DD794Eu);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c("56789", crc32c("1234")), 0xE3069283u);
}

/// A reader of event files, written from the protobuf and TFRecord descriptions alone.
struct EventReader {
  std::string bytes;
  std::size_t at = 0;

  template <class T>
  T raw() {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    at += sizeof value;
    return value;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes[at++]);
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }
};

struct ReadEvent {
  std::int64_t step = 0;
  std::string version;
  int session = 0;
  std::vector<std::pair<std::string, float>> scalars;
};

std::uint32_t mask(std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

void read_value(std::string bytes, ReadEvent& event) {
  EventReader in{std::move(bytes)};
  std::string tag;
  float number = 0;
  while (in.at < in.bytes.size()) {
    const auto key = in.varint();
    if (key == 10) {
      const auto size = in.varint();
      tag = in.bytes.substr(in.at, size);
      in.at += size;
    } else {
      EXPECT_EQ(key, 21u);
      number = in.raw<float>();
    }
  }
  event.scalars.emplace_back(tag, number);
}

std::vector<ReadEvent> read_events(const std::string& path) {
  EventReader file{read_file(path)};
  std::vector<ReadEvent> events;
  while (file.at < file.bytes.size()) {
    const auto head = file.bytes.substr(file.at, 8);
    const auto length = file.raw<std::uint64_t>();
    EXPECT_EQ(file.raw<std::uint32_t>(), mask(crc32c(head)));
    EventReader in{file.bytes.substr(file.at, length)};
    file.at += length;
    EXPECT_EQ(file.raw<std::uint32_t>(), mask(crc32c(in.bytes)));
    auto& event = events.emplace_back();
    while (in.at < in.bytes.size()) {
      const auto key = in.varint();
      if (key == 9) {
        EXPECT_GT(in.raw<double>(), 1.6e9);
      } else if (key == 16) {
        event.step = static_cast<std::int64_t>(in.varint());
      } else {
        const auto size = in.varint();
        const auto part = in.bytes.substr(in.at, size);
        in.at += size;
        if (key == 26) event.version = part;
        if (key == 58) event.session = part[1];
        for (EventReader values{key == 42 ? part : ""}; values.at < values.bytes.size();) {
          EXPECT_EQ(values.varint(), 10u);
          const auto one = values.varint();
          read_value(values.bytes.substr(values.at, one), event);
          values.at += one;
        }
      }
    }
  }
  return events;
}

std::string only_file(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    paths.push_back(entry.path().string());
  EXPECT_EQ(paths.size(), 1u);
  return paths.at(0);
}

TEST(EventFile, HoldsWhatTensorBoardReads) {
  const TemporaryFolder folder;
  {
    EventFile file(folder / "tensorboard", 7);
    file.scalars(300, {{"train/loss", 0.5}, {"train/epoch", 2}});
  }
  const auto path = only_file(folder / "tensorboard");
  EXPECT_THAT(path, HasSubstr("events.out.tfevents."));
  const auto events = read_events(path);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[1].session, 1);  // START
  EXPECT_EQ(events[1].step, 7);
  EXPECT_EQ(events[2].step, 300);
  EXPECT_THAT(events[2].scalars, ElementsAre(Pair("train/loss", 0.5F), Pair("train/epoch", 2.0F)));
}

StepMetrics step_of(std::int64_t step, double loss) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.epoch = 0.1;
  metrics.loss = loss;
  metrics.learning_rate = 1.42e-5;
  metrics.grad_norm = 0.94;
  metrics.tokens = 1000 * step;
  metrics.tokens_per_second = 38200;
  metrics.mfu = 0.41;
  metrics.step_time = 6.92;
  metrics.data_time = 0.0692;
  metrics.mem_peak = 71'000'000'000;
  metrics.mem_total = 80'000'000'000;
  return metrics;
}

TEST(Metrics, BarIsThatOfTheContract) {
  EXPECT_EQ(bar_text("stage2", step_of(1925, 0.873), 5198, 0, 13330),
            "stage2  37%|███▋      | 1925/5198 [3:42:10<6:17:44, 6.92s/it] loss 0.873 lr 1.42e-05 "
            "gnorm 0.94 tok/s 38.2k mfu 41% mem 71/80G data 1%");
}

TEST(Metrics, BarCountsPaceFromWhereTheProcessBegan) {
  const auto text = bar_text("lora", step_of(110, 1), 120, 100, 5);
  EXPECT_THAT(text, HasSubstr("110/120 [00:05<00:05, 2.00it/s]"));
}

TEST(Metrics, LineHasTheKeysOfTheContractInOrder) {
  const TemporaryFolder folder;
  Metrics(folder.path(), {.report_to = "none"}, "stage2", 0, 10).step(step_of(1, 0.1 + 0.2));
  const auto lines = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 1u);
  std::vector<std::string> keys;
  for (const auto& [key, value] : lines[0].items()) keys.push_back(key);
  EXPECT_THAT(keys, ElementsAre("kind", "step", "epoch", "loss", "learning_rate", "grad_norm",
                                "tokens", "tokens_per_second", "mfu", "step_time", "data_time",
                                "mem_peak", "skipped"));
  EXPECT_EQ(lines[0]["loss"].get<double>(), 0.1 + 0.2);  // full precision
  EXPECT_FALSE(std::filesystem::exists(folder / "tensorboard"));
}

TEST(Metrics, ResumedRunCutsLinesAfterItsStep) {
  const TemporaryFolder folder;
  {
    Metrics metrics(folder.path(), {}, "stage2", 0, 10);
    for (int step = 1; step <= 5; ++step) metrics.step(step_of(step, step));
    metrics.line("save", 3, {{"path", "checkpoint-3"}});
  }
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << "{\"kind\":\"train\",\"ste";  // killed
  {
    Metrics metrics(folder.path(), {}, "stage2", 3, 10);
    metrics.step(step_of(4, 40));
  }
  std::vector<std::pair<std::string, std::int64_t>> found;
  for (const auto& line : read_metrics(folder / "metrics.jsonl"))
    found.emplace_back(line["kind"].get<std::string>(), line["step"].get<std::int64_t>());
  EXPECT_THAT(found, ElementsAre(Pair("train", 1), Pair("train", 2), Pair("train", 3),
                                 Pair("save", 3), Pair("train", 4)));
}

TEST(Metrics, ForeignFileIsAnError) {
  const TemporaryFolder folder;
  folder.write("metrics.jsonl", "{\"kind\": \"train\", \"step\": 1}\nnot ours\n");
  EXPECT_THAT(error_of(Fault::data, [&] { read_metrics(folder / "metrics.jsonl"); }),
              HasSubstr("metrics.jsonl:2"));
}

TEST(Metrics, UnwritableFolderIsAUsageError) {
  const TemporaryFolder folder;
  const auto path = folder.write("file", "");
  EXPECT_THAT(error_of(Fault::usage, [&] { Metrics(path, {}, "x", 0, 1); }), HasSubstr(path));
}

TEST(Metrics, SvgDrawsTrainAndEvalCurves) {
  std::vector<Json> lines;
  for (int step = 1; step <= 3; ++step)
    lines.push_back({{"kind", "train"}, {"step", step}, {"loss", 4.0 - step}});
  lines.push_back({{"kind", "eval"}, {"step", 3}, {"loss", 2.0}});
  const auto svg = loss_svg(lines);
  // Steps 1..3 of 3 over 640 pixels from 60; losses 3, 2, 1 over 320 pixels from 20.
  EXPECT_THAT(svg, HasSubstr("points=\"273.3,20.0 486.7,180.0 700.0,340.0 \""));
  EXPECT_THAT(svg, HasSubstr("points=\"700.0,180.0 \""));
  EXPECT_EQ(loss_svg({}), "");
}

TEST(Metrics, NumbersAsPeopleReadThem) {
  EXPECT_EQ(short_count(950), "950");
  EXPECT_EQ(short_count(38200), "38.2k");
  EXPECT_EQ(short_count(7062902784), "7.06G");
  EXPECT_EQ(clock_text(2530), "42:10");
  EXPECT_EQ(clock_text(13330), "3:42:10");
}

TEST(Metrics, RefusesWhatMakesNoSense) {
  EXPECT_THAT(error_of(Fault::usage, [] { check(MetricsConfig{.logging_steps = 0}); }),
              HasSubstr("--logging_steps"));
  EXPECT_THAT(error_of(Fault::usage, [] { check(MetricsConfig{.report_to = "wandb"}); }),
              HasSubstr("--report_to"));
}

}  // namespace
}  // namespace llava::train
