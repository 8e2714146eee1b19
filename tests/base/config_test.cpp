#include "llava/base/config.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

using support::error_of;
using testing::HasSubstr;

struct Settings {
  bool fast = false;
  std::int64_t steps = 10;
  double rate = 0.5;
  std::string name = "x";
  std::vector<std::int64_t> layers{-2};
  std::optional<double> decay;

  template <class Field>
  void fields(Field& field) {
    field("fast", fast, "go fast");
    field("steps", steps, "number of steps");
    field("learning_rate", rate, "peak rate");
    field("name", name, "a name");
    field("layers", layers, "layers");
    field("decay", decay, "decay");
  }
};

TEST(Config, KeepsDefaultsOfAbsentKeys) {
  const auto settings = read_config<Settings>(parse_json(R"({"steps": 3})", "t"), "t");
  EXPECT_EQ(settings.steps, 3);
  EXPECT_EQ(settings.rate, 0.5);
  EXPECT_EQ(settings.layers, std::vector<std::int64_t>{-2});
}

TEST(Config, WritesWhatItReads) {
  const auto text =
      R"({"fast":true,"steps":7,"learning_rate":0.001,"name":"y","layers":[1,2],"decay":0.1})";
  const auto settings = read_config<Settings>(parse_json(text, "t"), "t");
  EXPECT_EQ(config_json(settings).dump(), text);
}

TEST(Config, UnknownKeyNamesTheNearest) {
  const auto message = error_of(Fault::usage, [] {
    read_config<Settings>(parse_json(R"({"learning_rat": 1})", "t.json"), "t.json");
  });
  EXPECT_THAT(message, HasSubstr("t.json"));
  EXPECT_THAT(message, HasSubstr("\"learning_rat\""));
  EXPECT_THAT(message, HasSubstr("did you mean \"learning_rate\""));
}

TEST(Config, WrongTypesNameTheField) {
  const auto read = [](const char* text) {
    return error_of(Fault::usage, [&] { read_config<Settings>(parse_json(text, "t"), "t"); });
  };
  EXPECT_THAT(read(R"({"steps": 1.5})"), HasSubstr("\"steps\""));
  EXPECT_THAT(read(R"({"steps": 9223372036854775808})"), HasSubstr("too large"));
  EXPECT_THAT(read(R"({"fast": 1})"), HasSubstr("true or false"));
  EXPECT_THAT(read(R"({"name": []})"), HasSubstr("text"));
  EXPECT_THAT(read(R"({"layers": 3})"), HasSubstr("list"));
}

TEST(ParseJson, TellsLineAndColumn) {
  const auto message =
      error_of(Fault::data, [] { parse_json("{\n  \"a\": 1,\n  \"b\": }\n", "c.json"); });
  EXPECT_THAT(message, HasSubstr("c.json:3:8"));
}

TEST(ParseJson, RefusesRepeatedKeysDeepNestingAndBadBytes) {
  EXPECT_THAT(error_of(Fault::data, [] { parse_json(R"({"a":1,"a":2})", "t"); }),
              HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(error_of(Fault::data, [] { parse_json(std::string(100000, '['), "t"); }),
              HasSubstr("nested deeper"));
  error_of(Fault::data, [] { parse_json("{\"a\": \"\xff\"}", "t"); });
  error_of(Fault::data, [] { parse_json("{} x", "t"); });
  error_of(Fault::data, [] { parse_json("", "t"); });
  EXPECT_EQ(parse_json(R"({"a":{"b":1},"c":{"b":2}})", "t").size(), 2u);
}

TEST(NearestName, FindsMisspellingsAndRefusesStrangers) {
  const std::vector<std::string> names{"learning_rate", "max_steps", "bf16"};
  EXPECT_EQ(nearest_name("learnig_rate", names), "learning_rate");
  EXPECT_EQ(nearest_name("max-step", names), "max_steps");
  EXPECT_EQ(nearest_name("bf61", names), "bf16");  // neighbours swapped
  EXPECT_EQ(nearest_name("colour", names), "");
}

TEST(ParseValue, ReadsFlagTexts) {
  std::int64_t whole = 0;
  double number = 0;
  bool truth = false;
  std::vector<std::int64_t> list;
  std::optional<double> maybe;
  parse_value("-12", "--n", whole);
  parse_value("1e-3", "--x", number);
  parse_value("True", "--b", truth);
  parse_value("1,2,3", "--l", list);
  parse_value("2.5", "--m", maybe);
  EXPECT_EQ(whole, -12);
  EXPECT_EQ(number, 1e-3);
  EXPECT_TRUE(truth);
  EXPECT_EQ(list, (std::vector<std::int64_t>{1, 2, 3}));
  EXPECT_EQ(maybe, 2.5);
  EXPECT_THAT(error_of(Fault::usage, [&] { parse_value("12x", "--n", whole); }), HasSubstr("--n"));
  EXPECT_THAT(error_of(Fault::usage, [&] { parse_value("nan", "--x", number); }),
              HasSubstr("finite"));
  error_of(Fault::usage, [&] { parse_value("", "--n", whole); });
  error_of(Fault::usage, [&] { parse_value("maybe", "--b", truth); });
}

}  // namespace
}  // namespace llava
