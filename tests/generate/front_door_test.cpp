#include "llava/llava.h"

#include "llava/base/files.h"
#include "llava/generate/chat.h"
#include "scripted.h"
#include "support/expect_error.h"
#include "support/temporary_folder.h"

#include <gmock/gmock.h>

namespace llava {
namespace {

using generate::Assistant;
using support::error_of;
using testing::HasSubstr;

/// A model folder with Llama's tokenizer, and a picture beside it.
class FrontDoor : public testing::Test {
 protected:
  FrontDoor() {
    auto model = test::tiny_model(generate::wordy_config());
    model::save_pretrained(model_, model, model::Layout::original, LLAVA_GOLDEN "/../text");
    std::string bytes = "P6 40 30 255\n";
    for (int i = 0; i < 3 * 40 * 30; ++i) bytes += static_cast<char>(37 * i);
    picture_ = folder_.write("cat.ppm", bytes);
  }

  support::TemporaryFolder folder_;
  std::string model_ = folder_ / "tiny-llava", picture_;
};

TEST_F(FrontDoor, AsksAsASessionDoes) {
  Chat chat(model_, {.device = "cpu", .conv_mode = "v1", .temperature = 0, .max_new_tokens = 6});
  auto assistant = generate::load_assistant(
      model_, {.load = {}, .choose_dtype = true, .conv_mode = "v1", .context = 0});
  generate::Session session(assistant, {.max_new_tokens = 6});
  const auto picture = generate::read_picture(assistant, picture_);

  EXPECT_EQ(chat.ask("What is it?", {picture_}), session.ask("What is it?", {picture}).text);
  std::string streamed;
  const auto second = chat.ask("Why?", {}, [&](std::string_view text) {
    streamed += text;
    return true;
  });
  EXPECT_EQ(second, session.ask("Why?").text);
  EXPECT_EQ(streamed, second);
  chat.clear();
  session.clear();
  EXPECT_EQ(chat.ask("What is it?", {picture_}), session.ask("What is it?", {picture}).text);
}

TEST_F(FrontDoor, AnImageThatCannotBeReadChangesNothing) {
  const ChatOptions options{.device = "cpu", .temperature = 0, .max_new_tokens = 4};
  Chat chat(model_, options), plain(model_, options);
  EXPECT_EQ(chat.ask("Hello"), plain.ask("Hello"));
  const auto missing = folder_ / "missing.png";
  EXPECT_THAT(error_of(Fault::data, [&] { chat.ask("And this?", {missing}); }), HasSubstr(missing));
  EXPECT_EQ(chat.ask("And?"), plain.ask("And?"));
}

TEST_F(FrontDoor, NamesWhatIsWrongWithAFolderOrAnOption) {
  EXPECT_THAT(error_of(Fault::data, [&] { Chat chat(folder_ / "nothing", {.device = "cpu"}); }),
              HasSubstr("nothing"));
  EXPECT_THAT(error_of(Fault::usage, [&] { Chat chat(model_, {.device = "tpu"}); }),
              HasSubstr("tpu"));
  EXPECT_THAT(error_of(Fault::usage,
                       [&] { Chat chat(model_, {.device = "cpu", .conv_mode = "vicunia_v1"}); }),
              HasSubstr("vicuna_v1"));
  EXPECT_THAT(error_of(Fault::usage, [&] { Chat chat(model_, {.device = "cpu", .top_p = 7}); }),
              HasSubstr("top_p"));
}

TEST_F(FrontDoor, CanBeMoved) {
  Chat first(model_, {.device = "cpu", .temperature = 0, .max_new_tokens = 3});
  const auto text = first.ask("Hello");
  Chat second(std::move(first));
  second.clear();
  EXPECT_EQ(second.ask("Hello"), text);
}

TEST(Assistant, ChoosesADtypeThatTheCpuMultiplies) {
  EXPECT_EQ(generate::auto_dtype("float32", torch::kCPU), std::nullopt);
  EXPECT_EQ(generate::auto_dtype("", torch::kCPU), std::nullopt);
  EXPECT_EQ(generate::auto_dtype("float16", torch::kCUDA), std::nullopt);
  const auto half = generate::auto_dtype("float16", torch::kCPU);
  EXPECT_EQ(generate::auto_dtype("bfloat16", torch::kCPU), half);
  EXPECT_TRUE(half == torch::kBFloat16 || half == torch::kFloat32);
}

TEST_F(FrontDoor, HalfPrecisionFilesOnACpuAreWidenedEvenWhenTheConfigIsSilent) {
  auto model = test::tiny_model(generate::wordy_config(), 1, torch::kHalf);
  model::save_pretrained(model_, model, model::Layout::original, LLAVA_GOLDEN "/../text");
  auto config = read_json(model_ + "/config.json");
  config.erase("torch_dtype");
  config.erase("dtype");
  write_file(model_ + "/config.json", json_text(config));
  const auto assistant = generate::load_assistant(model_);
  EXPECT_NE(assistant.model->llama->embed_tokens->weight.scalar_type(), torch::kHalf);
  EXPECT_EQ(assistant.name, "tiny-llava");
}

}  // namespace
}  // namespace llava
