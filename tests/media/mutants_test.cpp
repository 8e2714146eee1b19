// Damaged and lying pictures: an Error or a picture, never more than the promised memory. With
// LLAVA_MUTANTS=10000 in the environment as many are tried, and each must end within 2 s, under the
// sanitizers too (slow machines: run it alone).
#include "llava/base/check.h"
#include "llava/base/files.h"
#include "llava/media/image.h"
#include "support/digests.h"
#include "support/peak_memory.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <random>

namespace llava::media {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;
constexpr double kMostSeconds = 2;

std::vector<std::string> seeds() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(LLAVA_GOLDEN)) {
    const auto end = entry.path().extension();
    if (end != ".txt" && end != ".md") files.push_back(read_file(entry.path()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Bytes changed, removed, doubled or cut off; or two bytes in the header made large, where sizes
/// stand, with the checksum that makes libpng believe it.
std::string mutated(std::string bytes, std::mt19937& random) {
  const auto pick = [&](std::size_t below) { return random() % below; };
  for (std::size_t i = 0, edits = 1 + pick(4); i < edits && bytes.size() > 64; ++i) {
    const std::size_t at = pick(bytes.size());
    switch (pick(6)) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ 1 << pick(8)); break;
      case 1: bytes[at] = static_cast<char>(random()); break;
      case 2: bytes.erase(at, 1 + pick(8)); break;
      case 3: bytes.insert(at, bytes.substr(pick(bytes.size()), 1 + pick(16))); break;
      case 4: bytes.resize(pick(8) ? bytes.size() : at); break;
      case 5:
        for (const auto place : {pick(60), pick(60)}) bytes[place] = static_cast<char>(random());
    }
  }
  if (bytes.starts_with("\x89PNG") && bytes.size() > 33) {
    const auto sum = support::crc32(std::string_view(bytes).substr(12, 17));
    for (int i = 0; i < 4; ++i) bytes[29 + i] = static_cast<char>(sum >> (24 - 8 * i));
  }
  return bytes;
}

TEST(Mutants, OfPicturesStayWithinMemoryAndTime) {
  const char* asked = std::getenv("LLAVA_MUTANTS");
  const int count = asked ? std::atoi(asked) : 1000;
  const auto files = seeds();
  ASSERT_GT(files.size(), 50u);
  std::mt19937 random(5);
  int pictures = 0;
  for (int i = 0; i < count; ++i) {
    const auto bytes = mutated(files[random() % files.size()], random);
    const auto begin = std::chrono::steady_clock::now();
    const auto growth = support::peak_growth([&] {
      try {
        pictures += decode_image(bytes, "mutant").width > 0;
      } catch (const Error& error) {
        ASSERT_EQ(error.fault(), Fault::data) << error.what();
      }
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    EXPECT_LE(growth, kMostBytes) << "mutant " << i;
    if (asked) {
      EXPECT_LE(seconds.count(), kMostSeconds) << "mutant " << i;
    }
  }
  EXPECT_GT(pictures, count / 20) << "mutants that are all refused show little";
  EXPECT_LT(pictures, count);
}

/// A VP8L picture of one colour: 20-odd bytes claim any size.  Source: RFC 9649, section 3.
std::string one_colour_webp(std::uint32_t width, std::uint32_t height) {
  const std::uint32_t size = (width - 1) | (height - 1) << 14;
  // No transform, no cache, no meta codes; five codes of one symbol, 0, each: bits 1 0 0 0.
  std::string data{'\x2f', char(size), char(size >> 8), char(size >> 16), char(size >> 24)};
  data += std::string("\x88\x88\x08", 3);
  std::string chunk = "VP8L" + std::string{char(data.size()), 0, 0, 0} + data;
  return "RIFF" + std::string{char(chunk.size() + 4), 0, 0, 0} + "WEBP" + chunk;
}

TEST(Mutants, TinyFilesThatClaimHugePicturesAreRefusedBeforeMemoryIsTaken) {
  EXPECT_EQ(decode_image(one_colour_webp(300, 200), "small").rgb.size(), 3u * 300 * 200);
  for (const auto& [width, height] :
       {std::pair{16384u, 10000u}, {16384u, 16384u}, {6100u, 6100u}}) {
    const auto growth = support::peak_growth([&, w = width, h = height] {
      EXPECT_THROW(decode_image(one_colour_webp(w, h), "huge"), Error);
    });
    EXPECT_LT(growth, 1 << 20);
  }
  const auto growth = support::peak_growth(
      [] { EXPECT_EQ(decode_image(one_colour_webp(5900, 5900), "large").width, 5900); });
#ifndef __SANITIZE_ADDRESS__  // which keeps what is freed for a while
  EXPECT_LE(growth, kMostBytes);
#else
  EXPECT_LE(growth, 2 * kMostBytes);
#endif
}

}  // namespace
}  // namespace llava::media
