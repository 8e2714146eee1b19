#include "llava/model/chat_template.h"

#include "support/temporary_folder.h"

#include <gtest/gtest.h>

namespace llava::model {
namespace {

LlavaConfig decoder(const std::string& model_type, std::int64_t vocab_size = 32064) {
  LlavaConfig config;
  config.text.model_type = model_type;
  config.text.vocab_size = vocab_size;
  return config;
}

TEST(ChooseTemplate, SuitsTheDecoderWhereTheFolderIsSilent) {
  const support::TemporaryFolder empty;
  const auto chosen = [&](const LlavaConfig& config) {
    return choose_template(config, empty.path());
  };
  EXPECT_EQ(chosen(decoder("llama")), "vicuna_v1");
  EXPECT_EQ(chosen(decoder("llama", 128'264)), "llava_llama_3");
  EXPECT_EQ(chosen(decoder("mistral")), "mistral_instruct");
  EXPECT_EQ(chosen(decoder("qwen2")), "qwen_1_5");
}

// Marks of the templates that the public folders hold, wherever transformers has put them.
TEST(ChooseTemplate, FindsTheMarksOfTheFoldersChatTemplate) {
  const auto chosen = [](const char* file, const std::string& text, const char* model_type) {
    const support::TemporaryFolder folder;
    folder.write(file, text);
    return choose_template(decoder(model_type), folder.path());
  };
  const std::string chatml = R"({"chat_template": "{% for m in messages %}{{ '<|im_start|>' }}"})";
  EXPECT_EQ(chosen("tokenizer_config.json", chatml, "llama"), "chatml_direct");
  EXPECT_EQ(chosen("chat_template.json", chatml, "qwen2"), "qwen_1_5");
  const std::string inst = "{% if user %}{{ '[INST] ' + m + ' [/INST]' }}{% endif %}";
  EXPECT_EQ(chosen("chat_template.jinja", inst, "mistral"), "mistral_instruct");
  EXPECT_EQ(chosen("chat_template.jinja", inst, "llama"), "llava_llama_2");
  EXPECT_EQ(chosen("chat_template.jinja", "{% %}{{ '<|start_header_id|>' }}", "llama"),
            "llava_llama_3");
  EXPECT_EQ(chosen("chat_template.jinja", "{% %}{{ 'ASSISTANT:' }}", "mistral"), "vicuna_v1");
  EXPECT_EQ(chosen("tokenizer_config.json", R"({"eos_token": "<|im_start|>"})", "llama"),
            "vicuna_v1");  // a token alone is no template
}

TEST(ChooseTemplate, WhatIsAskedForWinsThenTheConfig) {
  const support::TemporaryFolder folder;
  folder.write("chat_template.jinja", "{% %}[INST]");
  auto config = decoder("llama");
  config.conversation = "v0";
  EXPECT_EQ(choose_template(config, folder.path()), "v0");
  EXPECT_EQ(choose_template(config, folder.path(), "plain"), "plain");
}

}  // namespace
}  // namespace llava::model
