// llava chat: a conversation in the terminal, or over a pipe a line a turn.
#include "llava/generate/chat.h"

#include "llava/base/files.h"
#include "llava/base/log.h"

#include "line_reader.h"
#include "talk.h"

#include <cstdio>

namespace llava::cli {
namespace {

struct ChatConfig {
  std::vector<std::string> image;
  TalkConfig talk;

  template <class Field>
  void fields(Field& field) {
    field("image", image, "picture for the first question; may be given several times");
    talk.fields(field);
  }
};

constexpr const char* kHelp =
    "/image PATH   show a picture with the next question (again for more)\n"
    "/video PATH   show a video file or a folder of frames with the next question\n"
    "/retry        answer the last question anew\n"
    "/clear        begin a new conversation\n"
    "/save FILE    write the conversation as a sample of LLaVA's training data\n"
    "/stats        times and tokens of the last answer\n"
    "/help         this list\n"
    "/quit         leave (so do Ctrl-D, and Ctrl-C pressed twice; once it stops an answer)\n";

/// The conversation of one run of the program.
class Talk {
 public:
  Talk(generate::Assistant& assistant, const ChatConfig& config)
      : assistant_(assistant),
        session_(assistant, config.talk.generate, config.talk.system),
        interactive_(is_interactive()) {
    for (const auto& path : config.image) show(path, generate::read_picture(assistant_, path));
  }

  /// Handles one line; returns false when it says to leave.
  bool handle(const std::string& line) {
    const auto begin = line.find_first_not_of(" \t");
    if (begin == std::string::npos) return true;
    if (line[begin] != '/') return ask(line), true;
    const auto end = std::min(line.find_first_of(" \t", begin), line.size());
    const auto command = line.substr(begin, end - begin);
    const auto rest = std::min(line.find_first_not_of(" \t", end), line.size());
    return obey(command, line.substr(rest, line.find_last_not_of(" \t\r") + 1 - rest));
  }

 private:
  bool obey(const std::string& command, const std::string& argument) {
    if (command == "/quit" || command == "/exit") return false;
    if (command == "/help") {
      say(kHelp);
    } else if (command == "/clear") {
      session_.clear();
      pictures_.clear();
      shown_.clear();
    } else if (command == "/retry") {
      answer([&](const generate::OnText& on_text) { return session_.retry(on_text); });
    } else if (command == "/image") {
      show(needed(command, argument), generate::read_picture(assistant_, argument));
    } else if (command == "/video") {
      show(needed(command, argument), generate::read_video(assistant_, argument, 0));
    } else if (command == "/save") {
      save(needed(command, argument));
    } else if (command == "/stats") {
      say(stats() + "\n");
    } else {
      fail(Fault::usage, "there is no command ", command,
           suggestion(command, {"/image", "/video", "/retry", "/clear", "/save", "/stats", "/help",
                                "/quit"}),
           "; /help lists them");
    }
    return true;
  }

  static const std::string& needed(const std::string& command, const std::string& argument) {
    expect(!argument.empty(), Fault::usage, command, " needs the name of a file");
    return argument;
  }

  void show(const std::string& path, input::Picture picture) {
    if (interactive_)
      say(path + ": " + std::to_string(picture.shape.image_width) + "x" +
          std::to_string(picture.shape.image_height) + ", " + std::to_string(picture.rows) +
          " tokens; it is shown with your next question\n");
    pictures_.push_back(std::move(picture));
    shown_.push_back(path);
  }

  void ask(const std::string& text) {
    answer([&](const generate::OnText& on_text) {
      const auto reply = session_.ask(text, pictures_, on_text);
      pictures_.clear();
      return reply;
    });
  }

  template <class Answer>
  void answer(Answer make) {
    begin_answer();
    const auto reply = make([](std::string_view text) {
      print(text);
      return !is_interrupted();
    });
    print(reply.finish == generate::Finish::cancelled && interactive_ ? " [stopped]\n" : "\n");
  }

  /// One sample of training data: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
  void save(const std::string& path) {
    Json turns = Json::array();
    for (const auto& message : session_.conversation().messages)
      turns.push_back(
          {{"from", message.role == text::Role::user ? "human" : "gpt"}, {"value", message.text}});
    Json sample{{"id", "chat"}};
    if (shown_.size() == 1) sample["image"] = shown_[0];
    if (shown_.size() > 1) sample["image"] = shown_;
    sample["conversations"] = turns;
    write_file(path, json_text(Json::array({sample})));
    say("wrote " + path + "\n");
  }

  std::string stats() const {
    const auto& weight = assistant_.model->llama->embed_tokens->weight;
    return timings_line(session_.timings(), {}, weight.device()) + " | context " +
           std::to_string(session_.tokens()) + " of " + std::to_string(assistant_.context);
  }

  /// What is no answer goes to stderr, so that a pipe gets answers alone.
  static void say(const std::string& text) { std::fputs(text.c_str(), stderr); }

  generate::Assistant& assistant_;
  generate::Session session_;
  bool interactive_;
  std::vector<input::Picture> pictures_;  // for the next question
  std::vector<std::string> shown_;        // all that the conversation saw, for /save
};

}  // namespace

int chat(const std::vector<std::string>& words) {
  ChatConfig config;
  config.talk.generate.sampling.temperature = 0.2;  // as the reference's cli.py
  Args args("chat", "talk about images in the terminal", words);
  args.add(config);
  add_talk_aliases(args);
  args.alias("image", "--image_file");
  if (!args.parse()) return 0;
  auto assistant = load_assistant(config.talk, args);
  Talk talk(assistant, config);
  if (is_interactive()) std::fputs("/help lists the commands, /quit leaves\n", stderr);
  int result = 0;
  for (;;) {
    const auto line = read_line("> ");
    if (!line) break;
    try {
      if (!talk.handle(*line)) break;
    } catch (const Error& error) {
      if (std::ferror(stdout)) throw;  // nobody reads the answers any more
      std::fprintf(stderr, "llava: %s\n", error.what());
      if (result == 0) result = static_cast<int>(error.fault());
    }
  }
  return is_interactive() ? 0 : result;
}

}  // namespace llava::cli
