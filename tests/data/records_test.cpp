#include "llava/data/records.h"

#include "set.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <random>

namespace llava::data {
namespace {

using support::error_of;
using support::TemporaryFolder;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

const Place kPlace{"set.json", 7, 3};

std::string parse_error(const std::string& json) {
  return error_of(Fault::data, [&] { parse_record(json, kPlace); });
}

std::vector<std::string> ids(const Records& records) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < records.size(); ++i) all.push_back(records.at(i).id);
  return all;
}

TEST(ParseRecord, TakesWhatTheReferenceTakes) {
  const auto record = parse_record(
      R"({"model": "x", "image": "a/b.jpg", "width": [1, {"a": null}], "id": "000\u0031",
          "conversations": [{"from": "human", "value": "<image>\nHi \ud83d\ude00\t\"é\""},
                            {"from": "gpt", "value": "Ho"}]})",
      kPlace);
  EXPECT_EQ(record.id, "0001");
  EXPECT_EQ(record.where, "set.json:7: sample \"0001\"");
  EXPECT_THAT(record.images, ElementsAre("a/b.jpg"));
  ASSERT_EQ(record.conversation.messages.size(), 2u);
  EXPECT_EQ(record.conversation.messages[0].text, "<image>\nHi \U0001F600\t\"é\"");
  EXPECT_EQ(record.conversation.messages[1].role, text::Role::assistant);
  EXPECT_FALSE(record.conversation.system);
}

TEST(ParseRecord, KnowsListsOfImagesVideosOtherRolesAndNumbersAsIds) {
  const auto images = parse_record(sample("a", {"Hi", "Ho"}, {"1.jpg", "2.jpg"}).dump(), kPlace);
  EXPECT_THAT(images.images, ElementsAre("1.jpg", "2.jpg"));

  const auto video = parse_record(
      R"({"id": 12, "image": null, "video": "v.mp4", "conversations":
          [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})",
      kPlace);
  EXPECT_EQ(video.id, "12");
  EXPECT_EQ(video.video, "v.mp4");
  EXPECT_TRUE(video.images.empty());

  const auto nameless = parse_record(
      R"({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})",
      kPlace);
  EXPECT_EQ(nameless.id, "3");
  EXPECT_EQ(nameless.where, "set.json:7: sample 3");
}

TEST(ParseRecord, ALeadingTurnThatIsNotTheUsersIsLeftOut) {
  const std::string rest = R"({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})";
  const auto greeted =
      parse_record(R"({"conversations": [{"from": "gpt", "value": "Hello"}, )" + rest, kPlace);
  EXPECT_EQ(greeted.conversation.messages.size(), 2u);
  const auto system = parse_record(
      R"({"conversations": [{"from": "system", "value": "Be brief."}, )" + rest, kPlace);
  EXPECT_EQ(system.conversation.system, "Be brief.");
}

TEST(ParseRecord, SaysWhatIsWrongWithTheTurns) {
  const auto turns = [](const std::string& list) {
    return parse_error(R"({"id": "s", "conversations": )" + list + "}");
  };
  EXPECT_THAT(turns("[]"), HasSubstr("set.json:7: sample \"s\": the conversation is empty"));
  EXPECT_THAT(turns("{}"), HasSubstr("\"conversations\" is not a list"));
  EXPECT_THAT(turns(R"([{"from": "human", "value": "Hi"}])"), HasSubstr("not answered"));
  EXPECT_THAT(turns(R"([{"from": "human", "value": "Hi"}, {"from": "human", "value": "Ho"}])"),
              HasSubstr("turn 2 is out of turn"));
  EXPECT_THAT(turns(R"([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ""}])"),
              HasSubstr("turn 2 is empty"));
  EXPECT_THAT(turns(R"([{"from": "humam", "value": "Hi"}])"),
              AllOf(HasSubstr("\"humam\""), HasSubstr("did you mean \"human\"?")));
  EXPECT_THAT(turns(R"([{"from": "human"}])"), HasSubstr("turn 1 has no \"value\""));
  EXPECT_THAT(turns(R"([{"from": "human", "value": 5}])"),
              HasSubstr("turn 1: \"value\" is 5, not text"));
  EXPECT_THAT(turns("[7]"), HasSubstr("turn 1 is not an object"));
  EXPECT_THAT(parse_error(R"({"id": "s"})"), HasSubstr("has no \"conversations\""));
  std::string many = "[";
  for (int i = 0; i < 600; ++i) many += R"({"from": "human", "value": "x"},)";
  many.back() = ']';
  EXPECT_THAT(turns(many), HasSubstr("more than 512 turns"));
}

TEST(ParseRecord, SaysWhatIsWrongWithOtherFields) {
  EXPECT_THAT(parse_error(R"({"image": 5})"), HasSubstr("\"image\" is 5, not text"));
  EXPECT_THAT(parse_error(R"({"image": ["a", {}]})"), HasSubstr("a name in \"image\" is {}"));
  EXPECT_THAT(parse_error(R"({"id": "a", "id": "b"})"), HasSubstr("the key \"id\" appears twice"));
  auto both = sample("s", {"Hi", "Ho"}, "a.jpg");
  both["video"] = "b.mp4";
  EXPECT_THAT(parse_error(both.dump()), HasSubstr("both \"image\" and \"video\""));
}

TEST(ParseRecord, PointsAtBrokenJson) {
  EXPECT_THAT(parse_error("{\"id\": \"s\",\n \"image\" \"a\"}"),
              AllOf(StartsWith("set.json:7: sample \"s\": not valid JSON: expected :"),
                    HasSubstr("line 8, column 10")));
  EXPECT_THAT(parse_error(R"({"id": "s" "image": 1})"), HasSubstr("expected , or }"));
  EXPECT_THAT(parse_error(R"({"id": "s",})"), HasSubstr("expected \""));
  EXPECT_THAT(parse_error(R"({"x": 01})"), HasSubstr("begins with 0"));
  EXPECT_THAT(parse_error(R"({"x": nul})"), HasSubstr("unknown word"));
  EXPECT_THAT(parse_error(R"({"x": "\q"})"), HasSubstr("unknown escape"));
  EXPECT_THAT(parse_error(R"({"x": "\ud800"})"), HasSubstr("surrogate"));
  EXPECT_THAT(parse_error("{\"x\": \"\xff\"}"), HasSubstr("not valid UTF-8"));
  EXPECT_THAT(parse_error("{\"x\": \"\xc0\xaf\"}"), HasSubstr("not valid UTF-8"));  // overlong
  EXPECT_THAT(parse_error("{\"x\": \"a\nb\"}"), HasSubstr("control character"));
  EXPECT_THAT(parse_error(R"({"x": "abc)"), HasSubstr("a string does not end"));
  EXPECT_THAT(parse_error("{} x"), HasSubstr("more after the value"));
  EXPECT_THAT(parse_error(R"({"x": )" + std::string(100'000, '[')), HasSubstr("nested deeper"));
}

TEST(ParseRecord, ShowsNoControlCharactersOfTheFile) {
  const auto message = parse_error("{\"id\": \"\\u001b[31m" + std::string(500, 'x') + "\"}");
  EXPECT_THAT(message, HasSubstr("\"?[31mxxx"));
  EXPECT_LT(message.size(), 200u);
}

// The oracle is the JSON library: what it refuses we refuse, and what it takes is no fault of JSON.
TEST(ParseRecord, AgreesWithTheJsonLibraryOnEveryMutation) {
  const std::string good =
      sample("é\n\"x\" 😀", {"<image>\nHi", "a\tb", "c", "d"}, {"a", "b"}).dump();
  std::mt19937 random(5);
  const std::string alphabet = "{}[]\",:\\u0019eE+-. \ntrufalsn\x80\xc3\xff";
  for (int round = 0; round < 20'000; ++round) {
    std::string text = good;
    for (auto edits = 1 + random() % 3; edits > 0; --edits) {
      const auto at = random() % text.size();
      const char c = alphabet[random() % alphabet.size()];
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 4);
      } else if (random() % 2 == 0) {
        text.insert(at, 1, c);
      } else {
        text[at] = c;
      }
    }
    bool says_broken = false;
    try {
      parse_record(text, kPlace);
    } catch (const Error& error) {
      const std::string what = error.what();
      says_broken = what.find("not valid") != what.npos || what.find("surrogate") != what.npos;
      if (!says_broken) continue;  // perhaps broken further on
    }
    ASSERT_EQ(says_broken, !Json::accept(text)) << text;
  }
}

TEST(Records, ReadsListsAndLinesAlike) {
  const TemporaryFolder folder;
  const auto a = sample("a", {"1", "2"}), b = sample("b }]\\\"{[", {"3", "4"}),
             c = sample("c", {"5", "6"});
  const auto list = folder.write(
      "l.json", "\xEF\xBB\xBF [" + a.dump(2) + ",\n" + b.dump() + " , \n" + c.dump(1) + "]\n");
  const auto lines = folder.write("l.jsonl", a.dump() + "\n\n" + b.dump() + "\r\n" + c.dump());
  for (const auto& path : {list, lines}) {
    const Records records(path);
    EXPECT_THAT(ids(records), ElementsAre("a", "b }]\\\"{[", "c"));
    EXPECT_EQ(Json::parse(records.json(1)), b);
    EXPECT_EQ(records.at(2).conversation.messages[1].text, "6");
  }
  EXPECT_EQ(Records(list).place(1).line, 14);  // a takes 13 lines
  EXPECT_EQ(Records(lines).place(1).line, 3);
  EXPECT_EQ(Records(lines).place(2).number, 3);
}

TEST(Records, ReadsAcrossTheEdgesOfItsBuffer) {
  const TemporaryFolder folder;
  std::string text = "[";
  for (int i = 0; i < 60; ++i) {  // 3 MB, braces and quotes in every text
    const auto turns =
        std::vector<std::string>{"\"{[\\", std::string(50'000 + i, i % 2 ? '\\' : '"')};
    text += (i ? ",\n" : "") + sample(std::to_string(i), turns).dump();
  }
  const Records records(folder.write("big.json", text + "]"));
  ASSERT_EQ(records.size(), 60);
  for (int i = 0; i < 60; ++i) {
    EXPECT_EQ(records.at(i).id, std::to_string(i));
    EXPECT_EQ(records.place(i).line, i + 1);
  }
}

TEST(Records, EveryTruncationIsAnErrorWithFileAndLine) {
  const TemporaryFolder folder;
  const std::string text =
      "[" + sample("a", {"1", "2"}).dump() + ",\n" + sample("b", {"3", "4\\\""}).dump() + "]";
  for (std::size_t size = 1; size < text.size(); ++size) {
    const auto path = folder.write("cut.json", text.substr(0, size));
    EXPECT_THAT(error_of(Fault::data, [&] { Records records(path); }), StartsWith(path + ":"))
        << size;
  }
}

// Damage ends in an error of kind data or in samples that can be read; never in anything else.
TEST(Records, AnyDamageToAFileIsAnError) {
  const TemporaryFolder folder;
  const std::string good =
      "[" + sample("a", {"1 \\ \"", "2"}).dump(1) + ",\n" + sample("b", {"3", "4"}).dump() + "]";
  std::mt19937 random(8);
  const std::string alphabet = "{}[]\",:\\ \n01\xff";
  int broken = 0;
  for (int round = 0; round < 400; ++round) {
    std::string text = good;
    for (auto edits = 1 + random() % 4; edits > 0; --edits) {
      const auto at = random() % text.size();
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 20);
      } else {
        text.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
    }
    const auto path = folder.write("x.json", text);
    try {
      const Records records(path);
      ids(records);
      EXPECT_LE(records.size(), 3) << text;
    } catch (const Error& error) {
      ++broken;
      EXPECT_EQ(error.fault(), Fault::data);
      EXPECT_THAT(error.what(), StartsWith(path)) << text;
    }
  }
  EXPECT_GT(broken, 250);
}

TEST(Records, SaysWhatIsWrongWithTheOutline) {
  const TemporaryFolder folder;
  const auto broken = [&](const std::string& text) {
    const auto path = folder.write("x.json", text);
    return error_of(Fault::data, [&] { Records records(path); }).substr(path.size());
  };
  EXPECT_THAT(broken(""), HasSubstr("is empty"));
  EXPECT_THAT(broken(" \n "), HasSubstr("is empty"));
  EXPECT_THAT(broken("[]"), HasSubstr("holds no samples"));
  EXPECT_THAT(broken("\x1f\x8b gzip"), HasSubstr("is this a JSON file?"));
  EXPECT_THAT(broken("[{},\n7]"), StartsWith(":2: expected { of a sample, found \"7\""));
  EXPECT_THAT(broken("[{},]"), HasSubstr("expected { of a sample, found \"]\""));
  EXPECT_THAT(broken("[{}\n{}]"), StartsWith(":2: expected , or ] after sample 1"));
  EXPECT_THAT(broken("[{}]\n[{}]"), StartsWith(":2: there is more after"));
  EXPECT_THAT(broken("{}\n7"), StartsWith(":2: expected one sample a line"));
  EXPECT_THAT(broken("[{},\n{\"a\": \"" + std::string(17 << 20, 'x') + "\"}]"),
              StartsWith(":2: the sample that begins here is longer than 16 MiB"));
  EXPECT_THAT(broken("[{},\n" + std::string(17 << 20, '[')), StartsWith(":2: expected {"));
}

TEST(Records, RefusesWhatIsNoFileWithoutWaiting) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(Fault::data, [&] { Records records(folder / "none.json"); }),
              AllOf(HasSubstr("none.json"), HasSubstr("cannot be opened")));
  EXPECT_THAT(error_of(Fault::data, [&] { Records records(folder.path()); }),
              HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo((folder / "pipe.json").c_str(), 0600), 0);
  EXPECT_THAT(error_of(Fault::data, [&] { Records records(folder / "pipe.json"); }),
              HasSubstr("not a regular file"));
}

/// Files a.json (a0 .. a9) and b.json (b0 .. b4).
struct Mixture : testing::Test {
  Mixture() {
    for (const auto& [name, count] : {std::pair("a", 10), std::pair("b", 5)}) {
      Json list = Json::array();
      for (int i = 0; i < count; ++i) list.push_back(sample(name + std::to_string(i), {"1", "2"}));
      folder.write(name + std::string(".json"), list.dump());
    }
  }
  TemporaryFolder folder;
};

TEST_F(Mixture, CommasAndBracesNameSeveralFiles) {
  const auto all = ids(Records(folder / "a.json" + std::string(",") + (folder / "b.json")));
  ASSERT_EQ(all.size(), 15u);
  EXPECT_EQ(all[10], "b0");
  EXPECT_EQ(ids(Records(folder / "{a,b}.json")), all);
}

TEST_F(Mixture, YamlAndJsonTakeTheSameShares) {
  const auto yaml = folder.write("mix.yaml",
                                 "# two sets\n"
                                 "datasets:\n"
                                 "  - json_path: " +
                                     (folder / "a.json") +
                                     "   # the first\n"
                                     "    sampling_strategy: \"first:12%\"\n"
                                     "  -\n"
                                     "    sampling_strategy: end:2\n"
                                     "    json_path: 'b.json'\n");       // beside the mixture file
  EXPECT_THAT(ids(Records(yaml)), ElementsAre("a0", "a1", "b3", "b4"));  // 12% of 10 rounds up
  const auto json = folder.write("mix.json", R"({
    "datasets": [{"json_path": "a.json", "sampling_strategy": "first:12%"},
                 {"json_path": "b.json", "sampling_strategy": "end:2"}]})");
  EXPECT_EQ(ids(Records(json)), ids(Records(yaml)));
  EXPECT_EQ(Records(yaml).place(2).number, 4);
}

TEST_F(Mixture, RandomSharesFollowTheSeed) {
  const auto mix =
      folder.write("mix.yaml", "datasets:\n- json_path: a.json\n  sampling_strategy: random:4\n");
  const auto drawn = ids(Records(mix, 1));
  EXPECT_EQ(drawn.size(), 4u);
  EXPECT_EQ(std::set<std::string>(drawn.begin(), drawn.end()).size(), 4u);
  EXPECT_EQ(ids(Records(mix, 1)), drawn);
  EXPECT_NE(ids(Records(mix, 2)), drawn);
}

TEST_F(Mixture, SaysWhatIsWrongWithAMixture) {
  const auto broken = [&](const std::string& name, const std::string& text) {
    const auto path = folder.write(name, text);
    return error_of(Fault::data, [&] { Records records(path); });
  };
  EXPECT_THAT(broken("m.yaml", "sets:\n"), HasSubstr("m.yaml:1: expected \"datasets:\""));
  EXPECT_THAT(broken("m.yaml", "datasets:\n- json_pth: a.json\n"),
              AllOf(HasSubstr("m.yaml:2: unknown key \"json_pth\""), HasSubstr("json_path")));
  EXPECT_THAT(broken("m.yaml", "datasets:\n- sampling_strategy: all\n"), HasSubstr("no json_path"));
  EXPECT_THAT(broken("m.yaml", "datasets:\n"), HasSubstr("names no datasets"));
  EXPECT_THAT(broken("m.yaml", "datasets:\n- json_path: a.json\n  sampling_strategy: middle:3\n"),
              HasSubstr("unknown sampling_strategy \"middle:3\""));
  for (const char* strategy :
       {"first", "first:", "first:x", "first:-1", "first:1.5%", "random:9999999999999999999"})
    EXPECT_THAT(
        broken("m.json",
               Json{{"datasets", {{{"json_path", "a.json"}, {"sampling_strategy", strategy}}}}}
                   .dump()),
        HasSubstr("sampling_strategy"))
        << strategy;
  EXPECT_THAT(broken("m.json", R"({"datasets": [5]})"), HasSubstr("dataset 1: expected an object"));
  EXPECT_THAT(
      error_of(Fault::usage, [&] { Records records(folder / "a.json" + std::string(",")); }),
      HasSubstr("empty name"));
}

TEST_F(Mixture, HoldsOutSamplesThatNobodyTrainsOn) {
  const Records all(folder / "{a,b}.json");
  const auto [kept, held] = all.hold_out(4, 9);
  EXPECT_EQ(held.size(), 4);
  auto together = ids(kept), others = ids(held);
  EXPECT_EQ(ids(all.hold_out(4, 9).second), others);
  EXPECT_NE(ids(all.hold_out(4, 10).second), others);
  together.insert(together.end(), others.begin(), others.end());
  std::sort(together.begin(), together.end());
  EXPECT_EQ(together, ids(all));
  EXPECT_NE(kept.fingerprint(), all.fingerprint());
  error_of(Fault::usage, [&] { all.hold_out(15, 1); });
  error_of(Fault::usage, [&] { all.hold_out(0, 1); });
}

TEST_F(Mixture, TheFingerprintNoticesAnyChange) {
  const auto before = Records(folder / "a.json").fingerprint();
  EXPECT_EQ(Records(folder / "a.json").fingerprint(), before);
  auto text = Json(Json::parse(std::ifstream(folder / "a.json"))).dump();
  text.replace(text.find("a7"), 2, "A7");
  EXPECT_NE(Records(folder.write("a.json", text)).fingerprint(), before);
}

TEST(SampleWriter, WritesWhatRecordsReadsOrNothing) {
  const TemporaryFolder folder;
  const auto path = folder / "good.json";
  {
    SampleWriter writer(path);
    writer.add(sample("a", {"1", "2"}).dump(2));
    writer.add(sample("b", {"3", std::string(1 << 20, 'x')}).dump());
    EXPECT_FALSE(std::filesystem::exists(path));
    writer.commit();
  }
  EXPECT_THAT(ids(Records(path)), ElementsAre("a", "b"));
  SampleWriter(folder / "none.json").add("{}");
  EXPECT_FALSE(std::filesystem::exists(folder / "none.json"));
  SampleWriter nothing(path);
  nothing.commit();
  EXPECT_EQ(read_file(path), "[]\n");
}

}  // namespace
}  // namespace llava::data
