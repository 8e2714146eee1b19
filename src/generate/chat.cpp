#include "llava/generate/chat.h"

#include "llava/llava.h"
#include "llava/nn/device.h"

#include "clock.h"

namespace llava::generate {

Session::Session(Assistant& assistant, const GenerateConfig& config,
                 std::optional<std::string> system)
    : assistant_(assistant), config_(config), row_(make_row(assistant, 0, config.seed, 0)) {
  config_.validate();
  conversation_.system = std::move(system);
}

void Session::go_back_to(const Held& held) {
  row_.cache.truncate(held.length);
  row_.seen = held.seen;
  held_ = held;
}

/// Makes room for `tokens` in all, twice as much as before at least.
void Session::reserve(std::int64_t tokens) {
  const auto capacity = row_.cache.capacity();
  if (tokens <= capacity) return;
  auto larger = model::make_cache(assistant_.model->llama,
                                  std::max(tokens, std::min(2 * capacity, assistant_.context)));
  larger.copy_from(row_.cache, 0);
  row_.cache = std::move(larger);
}

/// Puts all that was said since what is held behind it.
void Session::prefill_turn() {
  std::vector<input::Picture> pictures;
  for (std::size_t i = held_.messages; i < pictures_.size(); ++i)
    pictures.insert(pictures.end(), pictures_[i].begin(), pictures_[i].end());
  auto example =
      assistant_.encoder.encode_prompt(conversation_, std::move(pictures), held_.messages);
  example.ids.insert(example.ids.begin(), held_.pending.begin(), held_.pending.end());
  example.labels.insert(example.labels.begin(), held_.pending.size(), input::kIgnore);
  expect_fits(assistant_, example, held_.length, config_.max_new_tokens == 0 ? 0 : 1);

  const auto embeds = embed(assistant_, example, &timings_);
  const auto used = held_.length + embeds.size(0);
  reserve(used + answer_limit(assistant_, config_, used));
  const Clock clock;
  prefill(assistant_, row_, embeds, example.ids);
  timings_.prefill_ms = clock.milliseconds();
  timings_.prefill_tokens = embeds.size(0);
  prompt_ = {conversation_.messages.size(), row_.cache.length(), {}, row_.seen};
  prompt_logits_ = row_.logits.clone();
}

/// Answers the prompt that was prefilled last and appends the answer to the conversation.
Answer Session::answer_turn(const OnText& on_text) {
  row_.random = Random(config_.seed, draws_++);
  const Clock clock;
  auto answer = generate(assistant_, {&row_}, config_, on_text).at(0);
  timings_.decode_ms = clock.milliseconds();
  timings_.decode_tokens = static_cast<std::int64_t>(answer.ids.size());
  conversation_.messages.push_back({text::Role::assistant, answer.text});
  pictures_.emplace_back();
  hold(answer);
  return answer;
}

/// Holds the turn, if its text ends where a token ends; else it is prefilled again with the next.
void Session::hold(const Answer& answer) {
  if (!answer.kept_is_exact) {
    prompt_logits_ = torch::Tensor();
    return go_back_to(turn_start_);
  }
  const auto fed = static_cast<std::size_t>(row_.cache.length() - prompt_.length);
  const auto here = answer.ids.begin() + static_cast<std::ptrdiff_t>(std::min(fed, answer.kept));
  Held turn = prompt_;
  turn.messages = conversation_.messages.size();
  turn.length += here - answer.ids.begin();
  turn.pending.assign(here, answer.ids.begin() + static_cast<std::ptrdiff_t>(answer.kept));
  turn.seen.insert(turn.seen.end(), answer.ids.begin(), here);
  go_back_to(turn);
}

Answer Session::ask(const std::string& text, std::vector<input::Picture> pictures,
                    const OnText& on_text) {
  const std::size_t messages = conversation_.messages.size();
  const Held before = held_;
  try {
    timings_ = {};
    conversation_.messages.push_back({text::Role::user, with_marks(text, pictures)});
    pictures_.push_back(std::move(pictures));
    prompt_logits_ = torch::Tensor();
    turn_start_ = held_;
    prefill_turn();
    return answer_turn(on_text);
  } catch (...) {
    conversation_.messages.resize(messages);
    pictures_.resize(messages);
    go_back_to(before);
    throw;
  }
}

Answer Session::retry(const OnText& on_text) {
  expect(!conversation_.messages.empty(), Fault::usage, "nothing was asked yet");
  const auto last = conversation_.messages.back();
  try {
    timings_ = {};
    conversation_.messages.pop_back();
    pictures_.pop_back();
    if (prompt_logits_.defined()) {
      go_back_to(prompt_);
      row_.logits = prompt_logits_.clone();
    } else {
      go_back_to(turn_start_);
      prefill_turn();
    }
    return answer_turn(on_text);
  } catch (...) {
    conversation_.messages.resize(prompt_.messages);
    conversation_.messages.push_back(last);
    pictures_.resize(conversation_.messages.size());
    prompt_logits_ = torch::Tensor();
    go_back_to(turn_start_);  // the old answer's keys and values may be gone
    throw;
  }
}

void Session::clear() {
  conversation_.messages.clear();
  pictures_.clear();
  prompt_logits_ = torch::Tensor();
  turn_start_ = {};
  go_back_to({});
}

}  // namespace llava::generate

namespace llava {

struct Chat::State {
  generate::Assistant assistant;
  generate::Session session;

  State(const std::string& folder, const ChatOptions& options)
      : assistant(load(folder, options)),
        session(assistant, generate_config(options),
                options.system.empty() ? std::nullopt : std::optional(options.system)) {}

  static generate::Assistant load(const std::string& folder, const ChatOptions& options) {
    nn::set_threads(options.threads);
    generate::AssistantOptions assistant;
    assistant.load.device = nn::choose_device(options.device);
    assistant.load.dtype = nn::choose_dtype(options.dtype);
    assistant.load.model_base = options.model_base;
    assistant.conv_mode = options.conv_mode;
    assistant.bits = options.bits;
    assistant.context = options.context;
    return generate::load_assistant(folder, assistant);
  }

  static generate::GenerateConfig generate_config(const ChatOptions& options) {
    return {.sampling = {.temperature = options.temperature,
                         .top_k = options.top_k,
                         .top_p = options.top_p,
                         .min_p = options.min_p,
                         .repeat_penalty = options.repeat_penalty},
            .max_new_tokens = options.max_new_tokens,
            .seed = options.seed};
  }
};

Chat::Chat(const std::string& model_folder, const ChatOptions& options)
    : state_(std::make_unique<State>(model_folder, options)) {}
Chat::~Chat() = default;
Chat::Chat(Chat&&) noexcept = default;
Chat& Chat::operator=(Chat&&) noexcept = default;

std::string Chat::ask(const std::string& text, const std::vector<std::string>& images,
                      const std::function<bool(std::string_view)>& on_text) {
  std::vector<input::Picture> pictures;
  for (const auto& path : images)
    pictures.push_back(generate::read_picture(state_->assistant, path));
  return state_->session.ask(text, std::move(pictures), on_text).text;
}

void Chat::clear() { state_->session.clear(); }

}  // namespace llava
