// llava run: one answer for pictures and a prompt, or a file of questions.
#include "llava/base/log.h"
#include "llava/generate/questions.h"
#include "llava/text/conversation.h"
#include "llava/weights/safetensors.h"

#include "talk.h"

#include <chrono>
#include <cstdio>

namespace llava::cli {
namespace {

struct RunConfig {
  std::string prompt;
  std::vector<std::string> image;
  std::string video;
  std::int64_t video_frames = 0;
  bool raw = false, show_prompt = false, timings = false;
  std::string dump;
  std::string input, output, image_folder;
  std::int64_t batch = 1;
  std::string batch_mode = "exact";
  TalkConfig talk;

  template <class Field>
  void fields(Field& field) {
    field("prompt", prompt, "what to ask; <image> where a picture goes, else pictures go in front");
    field("image", image, "picture; may be given several times, in the order of the <image> marks");
    field("video", video, "video file, or folder of frames in the order of their names");
    field("video_frames", video_frames,
          "frames taken, evenly spread; 0: one a second, all of a folder");
    field("raw", raw, "the prompt is all the model gets: no template");
    field("show_prompt", show_prompt, "print the exact text and ids to stderr");
    field("timings", timings, "print times and rates to stderr");
    field("dump", dump, "write the forward pass of the prompt to this safetensors file");
    field("input", input, "questions: JSON lines with question_id, image, text");
    field("output", output, "answers: JSON lines; a run that was killed goes on in it");
    field("image_folder", image_folder, "where the questions' images are");
    field("batch", batch, "questions answered together");
    field("batch_mode", batch_mode,
          "exact: the same bits whatever the batch; fast: one product for all rows");
    talk.fields(field);
  }
};

/// The prompt as the model takes it.
struct Asked {
  std::string text;  // after the template
  input::Example example;
  std::vector<std::int64_t> picture_tokens;
  double image_ms = 0;
};

/// Pictures in the order of the marks in `prompt`; without marks images first, then the video.
std::vector<input::Picture> pictures_of(const generate::Assistant& assistant,
                                        const RunConfig& config) {
  std::vector<input::Picture> pictures;
  for (const auto& path : config.image) pictures.push_back(generate::read_picture(assistant, path));
  if (config.video.empty()) return pictures;
  std::size_t at = pictures.size();
  const auto mark = config.prompt.find(input::kVideoMark);
  if (mark != std::string::npos) {  // after as many images as have marks before the video's
    std::size_t images = 0;
    for (auto i = config.prompt.find(text::kImageMark); i < mark;
         i = config.prompt.find(text::kImageMark, i + 1))
      ++images;
    at = std::min(at, images);
  }
  pictures.insert(pictures.begin() + static_cast<std::ptrdiff_t>(at),
                  generate::read_video(assistant, config.video, config.video_frames));
  return pictures;
}

Asked encode(const generate::Assistant& assistant, const RunConfig& config) {
  const auto start = std::chrono::steady_clock::now();
  auto pictures = pictures_of(assistant, config);
  Asked asked;
  if (!pictures.empty())
    asked.image_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  for (const auto& picture : pictures) asked.picture_tokens.push_back(picture.rows);
  const auto marked = generate::with_marks(config.prompt, pictures);
  if (config.raw) {
    asked.text = marked;
    asked.example = assistant.encoder.encode_raw(marked, std::move(pictures));
    return asked;
  }
  text::Conversation conversation;
  conversation.system = config.talk.system;
  conversation.messages = {{text::Role::user, marked}};
  asked.text = text::render_open(assistant.encoder.chat(), conversation).text;
  asked.example = assistant.encoder.encode_prompt(conversation, std::move(pictures));
  return asked;
}

/// The tensors of a forward pass over the whole prompt, in float32 (contract, section 4.1).
void dump(generate::Assistant& assistant, const input::Example& example, const std::string& path) {
  torch::NoGradGuard no_grad;
  auto& model = assistant.model;
  const auto batch = input::collate({example}).to(model->llama->embed_tokens->weight.device());
  weights::StateDict state;
  const auto add = [&](const char* name, const torch::Tensor& tensor) {
    state.add(name, tensor.to(torch::kCPU, torch::kFloat32).contiguous());
  };
  if (batch.tiles.defined()) {
    generate::pack_tower(model);
    const auto pixels = model->pixel_values(batch.tiles);
    const auto features = model->vision_features(pixels);
    add("pixel_values", pixels);
    add("vision_features", features);
    add("image_features", torch::cat(model->image_features(features, batch.pictures)));
  }
  const auto embeds = generate::embed(assistant, example);
  const auto logits = model->logits(model->llama->forward(embeds, {0, embeds.size(0)}));
  add("inputs_embeds", embeds.unsqueeze(0));
  add("logits", logits.unsqueeze(0));
  weights::save_safetensors(path, state);
}

void show_prompt(const Asked& asked) {
  std::fprintf(stderr, "prompt: %s\nids:",
               Json(asked.text).dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  for (const auto id : asked.example.ids) std::fprintf(stderr, " %lld", static_cast<long long>(id));
  std::fprintf(stderr, "\ntokens: %lld", static_cast<long long>(asked.example.num_tokens()));
  for (const auto tokens : asked.picture_tokens)
    std::fprintf(stderr, ", %lld of a picture", static_cast<long long>(tokens));
  std::fputc('\n', stderr);
}

Json answer_json(const Asked& asked, const generate::Answer& answer,
                 const generate::Timings& timings) {
  return {{"text", answer.text},
          {"finish_reason", generate::finish_name(answer.finish)},
          {"prompt", asked.text},
          {"prompt_ids", asked.example.ids},
          {"ids", answer.ids},
          {"image_tokens", asked.picture_tokens},
          {"timings",
           {{"image_ms", timings.image_ms},
            {"vision_ms", timings.vision_ms},
            {"prefill_ms", timings.prefill_ms},
            {"decode_ms", timings.decode_ms},
            {"prefill_tokens", timings.prefill_tokens},
            {"decode_tokens", timings.decode_tokens}}}};
}

int answer_one(generate::Assistant& assistant, const RunConfig& config, const Args& args) {
  const auto asked = encode(assistant, config);
  if (config.show_prompt) show_prompt(asked);
  const auto& limits = config.talk.generate;
  generate::expect_fits(assistant, asked.example, 0, limits.max_new_tokens == 0 ? 0 : 1);
  if (!config.dump.empty()) dump(assistant, asked.example, config.dump);
  generate::OnText on_text;
  if (!args.common().json)
    on_text = [](std::string_view text) {
      print(text);
      return true;
    };
  generate::Timings timings;
  timings.image_ms = asked.image_ms;
  const auto answer =
      generate::answer(assistant, {asked.example}, limits, {0}, on_text, &timings).at(0);
  print(args.common().json ? json_text(answer_json(asked, answer, timings)) : "\n");
  if (config.timings)
    std::fprintf(stderr, "%s\n",
                 timings_line(timings, asked.picture_tokens,
                              assistant.model->llama->embed_tokens->weight.device())
                     .c_str());
  return 0;
}

int answer_file(generate::Assistant& assistant, const RunConfig& config, const Args& args) {
  const auto report = generate::answer_questions(assistant,
                                                 {.input = config.input,
                                                  .output = config.output,
                                                  .image_folder = config.image_folder,
                                                  .batch = config.batch,
                                                  .with_ids = args.common().json,
                                                  .raw = config.raw,
                                                  .system = config.talk.system},
                                                 config.talk.generate);
  log::info(report.questions, " questions, ", report.answered_before, " answered before, ",
            report.failed, " failed");
  if (args.common().json)
    print(json_text({{"questions", report.questions},
                     {"answered_before", report.answered_before},
                     {"failed", report.failed}}));
  expect(
      report.failed == 0, report.first_fault, report.failed, " of ", report.questions,
      " questions could not be answered and have an empty answer; the first: ", report.first_error);
  return 0;
}

}  // namespace

int run(const std::vector<std::string>& words) {
  RunConfig config;
  Args args("run", "answer one prompt about images or a video, or a file of questions", words);
  args.add(config);
  add_talk_aliases(args);
  args.alias("prompt", "-p");
  args.alias("prompt", "--query");
  args.alias("image", "--image_file");
  args.alias("video_frames", "--frames");
  if (!args.parse()) return 0;
  const bool many = !config.input.empty();
  expect(many || args.given("prompt"), Fault::usage,
         "llava run: ask something with -p TEXT, or give a file of questions with --input FILE");
  expect(!many || !config.output.empty(), Fault::usage,
         "llava run: --input needs --output FILE for the answers");
  expect(config.batch_mode == "exact" || config.batch_mode == "fast", Fault::usage,
         "--batch_mode: expected exact or fast, found \"", config.batch_mode, "\"");
  if (config.batch_mode == "fast") config.talk.generate.batching = generate::Batching::fast;
  auto assistant = load_assistant(config.talk, args);
  return many ? answer_file(assistant, config, args) : answer_one(assistant, config, args);
}

}  // namespace llava::cli
