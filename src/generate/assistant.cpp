#include "llava/generate/assistant.h"

#include "llava/base/log.h"
#include "llava/media/video.h"
#include "llava/model/chat_template.h"

#include "clock.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string_view>

namespace llava::generate {
namespace {

std::uint64_t hash_of(const input::Picture& picture) {
  const auto* bytes = reinterpret_cast<const char*>(picture.pixels.data());
  return std::hash<std::string_view>{}({bytes, picture.pixels.size()});
}

bool is_same(const input::Picture& a, const input::Picture& b) {
  return a.shape.image_width == b.shape.image_width &&
         a.shape.image_height == b.shape.image_height && a.shape.grid_width == b.shape.grid_width &&
         a.shape.grid_height == b.shape.grid_height && a.frames == b.frames && a.pixels == b.pixels;
}

input::Encoder make_encoder(const model::LlavaConfig& config, text::Tokenizer tokenizer,
                            const std::string& conv_mode) {
  return {
      std::move(tokenizer),
      text::find_template(model::choose_template(config, "", conv_mode)),
      {.tiling = config.tiling, .merge = config.merge, .image_start_end = config.image_start_end}};
}

/// Whether the CPU has instructions for bfloat16 products.
bool cpu_multiplies_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::size_t count_marks(std::string_view text, std::string_view mark) {
  std::size_t count = 0;
  for (auto at = text.find(mark); at != text.npos; at = text.find(mark, at + mark.size())) ++count;
  return count;
}

/// Gives a model whose head is its embedding a head of its own, packed, since the embedding's rows
/// are looked up and cannot be. Not registered: it is no weight of the model.
void pack_tied_head(model::Llava& model, nn::Packing packing) {
  const auto& weight = model->head_weight();
  if (!nn::can_pack(weight.size(1), packing)) return;
  nn::Linear head(weight.size(1), weight.size(0), /*with_bias=*/false,
                  torch::TensorOptions(torch::kMeta).dtype(weight.scalar_type()));
  head->weight = weight;
  head->pack(packing);
  model->lm_head = head;
}

/// Whether a model's bfloat16 weights are laid out for products on this CPU.
bool packs_bfloat16(const model::Llava& model) {
  const auto& weight = model->llama->embed_tokens->weight;
  return weight.is_cpu() && weight.scalar_type() == torch::kBFloat16 &&
         nn::prefers_packed_bfloat16();
}

bool is_video(const input::Picture& picture) { return picture.frames > 0; }

/// Rows of one picture [P, D], from the cache or the vision tower.
torch::Tensor features_of(Assistant& assistant, const input::Picture& picture) {
  auto features = assistant.features.find(picture);
  if (features.defined()) return features;
  input::Example alone;
  alone.ids = {input::kImageToken};
  alone.labels = {input::kIgnore};
  alone.pictures = {picture};
  auto& model = assistant.model;
  pack_tower(model);
  const auto batch = input::collate({alone}).to(model->llama->embed_tokens->weight.device());
  const auto hidden = model->vision_features(model->pixel_values(batch.tiles));
  features = model->image_features(hidden, batch.pictures).at(0);
  assistant.features.add(picture, features);
  return features;
}

}  // namespace

torch::Tensor FeatureCache::find(const input::Picture& picture) {
  const auto hash = hash_of(picture);
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->hash != hash || !is_same(entry->picture, picture)) continue;
    entries_.splice(entries_.begin(), entries_, entry);
    return entry->features;
  }
  return {};
}

void FeatureCache::add(const input::Picture& picture, const torch::Tensor& features) {
  entries_.push_front({hash_of(picture), picture, features});
  if (entries_.size() > capacity_) entries_.pop_back();
}

Assistant::Assistant(model::Llava loaded, text::Tokenizer words, const std::string& conv_mode)
    : model(std::move(loaded)), encoder(make_encoder(model->config, std::move(words), conv_mode)) {
  stop_ids = model->config.text.eos_token_ids;
  if (tokenizer().eos()) stop_ids.push_back(*tokenizer().eos());
  for (const auto& stop : text::stop_strings(encoder.chat())) {
    if (const auto id = tokenizer().special(stop)) stop_ids.push_back(*id);
    stop_strings.push_back(stop);
  }
  std::sort(stop_ids.begin(), stop_ids.end());
  stop_ids.erase(std::unique(stop_ids.begin(), stop_ids.end()), stop_ids.end());
  const auto& config = model->config;
  context = config.max_length > 0 ? config.max_length : config.text.max_position_embeddings;
  model->eval();
}

void pack_tower(model::Llava& model) {
  if (!packs_bfloat16(model)) return;
  nn::pack_linears(*model->vision, nn::Packing::bfloat16);
  nn::pack_linears(*model->projector, nn::Packing::bfloat16);
}

bool pack_decoder(model::Llava& model, std::int64_t bits) {
  expect(bits == 16 || bits == 8 || bits == 4, Fault::usage, "bits must be 16, 8 or 4, got ", bits);
  const auto weight = model->llama->embed_tokens->weight;
  if (bits < 16) {
    nn::pack_linears(*model->llama, bits == 8 ? nn::Packing::int8 : nn::Packing::int4);
    if (model->lm_head)
      nn::pack_linears(*model->lm_head, nn::Packing::int8);
    else if (weight.is_cpu())
      pack_tied_head(model, nn::Packing::int8);
  }
  if (packs_bfloat16(model)) {
    nn::pack_linears(*model->llama, nn::Packing::bfloat16);
    if (model->lm_head)
      nn::pack_linears(*model->lm_head, nn::Packing::bfloat16);
    else
      pack_tied_head(model, nn::Packing::bfloat16);
  }
  bool all = weight.is_cpu() && model->lm_head;
  const auto look = [&](const std::string& /*name*/, torch::nn::Module& part) {
    const auto* linear = part.as<nn::LinearImpl>();
    if (linear) all = all && linear->packed && !linear->has_lora();
  };
  model->llama->apply(look);
  if (model->lm_head) model->lm_head->apply(look);
  return all;
}

bool pack_for_answers(model::Llava& model, std::int64_t bits) {
  pack_tower(model);
  return pack_decoder(model, bits);
}

std::optional<torch::ScalarType> auto_dtype(const std::string& torch_dtype, torch::Device device) {
  const bool half = torch_dtype == "float16" || torch_dtype == "bfloat16";
  if (!half || !device.is_cpu()) return {};
  return cpu_multiplies_bfloat16() ? torch::kBFloat16 : torch::kFloat32;
}

Assistant load_assistant(const std::string& folder, const AssistantOptions& options) {
  torch::NoGradGuard no_grad;
  auto load = options.load;
  const bool choose = options.choose_dtype && !load.dtype;
  if (choose) load.dtype = auto_dtype(model::read_llava_config(folder).torch_dtype, load.device);
  load.leaves_in_files =
      options.bits < 16 || (load.dtype == torch::kBFloat16 && nn::prefers_packed_bfloat16());
  auto loaded = model::load_pretrained(folder, load);
  const auto& weight = loaded.model->llama->embed_tokens->weight;
  if (choose && !load.dtype && weight.scalar_type() == torch::kHalf && load.device.is_cpu()) {
    load.dtype = auto_dtype("float16", load.device);  // the config was silent about its files
    loaded = {};
    loaded = model::load_pretrained(folder, load);
  }
  const bool rows_are_independent = pack_decoder(loaded.model, options.bits);
  const auto& words = loaded.tokenizer_folder;
  Assistant assistant(loaded.model, text::Tokenizer::load(words),
                      model::choose_template(loaded.model->config, words, options.conv_mode));
  assistant.image = options.image;
  assistant.rows_are_independent = rows_are_independent;
  assistant.token_step = model::make_token_step(assistant.model);
  assistant.device_step = model::make_device_step(assistant.model);
  assistant.name = model_name(folder);
  if (options.context > assistant.context)
    log::warn("the model was made for ", assistant.context, " tokens; a context of ",
              options.context, " may give nonsense at its end");
  if (options.context > 0) assistant.context = options.context;
  return assistant;
}

std::string model_name(const std::string& folder) {
  auto path = std::filesystem::absolute(folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  const auto last = path.filename().string();
  if (last.rfind("checkpoint-", 0) != 0) return last;
  return path.parent_path().filename().string() + "_" + last;
}

input::Picture read_picture(const Assistant& assistant, const std::string& path) {
  return assistant.encoder.picture(media::load_image(path, assistant.image));
}

input::Picture read_video(const Assistant& assistant, const std::string& path,
                          std::int64_t frames) {
  return assistant.encoder.video(
      media::load_video(path, {.frames = frames, .image = assistant.image}).frames);
}

std::string with_marks(const std::string& text, const std::vector<input::Picture>& pictures) {
  const bool videos = std::any_of(pictures.begin(), pictures.end(), is_video);
  const std::size_t marks =
      count_marks(text, text::kImageMark) + (videos ? count_marks(text, input::kVideoMark) : 0);
  if (marks == pictures.size()) return text;
  expect(marks == 0, Fault::usage, "the prompt has ", marks, " ", text::kImageMark, " marks but ",
         pictures.size(),
         " pictures were given; give one picture for each mark, or no mark at all");
  std::string marked;
  for (const auto& picture : pictures)
    marked.append(is_video(picture) ? input::kVideoMark : text::kImageMark).append("\n");
  return marked + text;
}

void expect_fits(const Assistant& assistant, const input::Example& example, std::int64_t used,
                 std::int64_t room) {
  const std::int64_t tokens = example.num_tokens();
  if (used + tokens + room <= assistant.context) return;
  const auto pictures = example.pictures.size();
  std::ostringstream sum;
  sum << example.ids.size() - pictures << " of text";
  for (const auto& picture : example.pictures)
    sum << " + " << picture.rows << (is_video(picture) ? " of a video" : " of an image");
  fail(Fault::capacity, "the prompt has ", tokens, " tokens (", sum.str(), ")",
       used > 0 ? " after " + std::to_string(used) + " of the conversation so far" : "",
       ", the context holds ", assistant.context,
       used > 0 ? "; start a new conversation" : "; shorten the text",
       pictures > 0 ? ", give fewer or smaller pictures" : "",
       " or raise -c if the model allows more");
}

torch::Tensor embed(Assistant& assistant, const input::Example& example, Timings* timings) {
  torch::NoGradGuard no_grad;
  const Clock clock;
  std::vector<torch::Tensor> features;
  for (const auto& picture : example.pictures) features.push_back(features_of(assistant, picture));
  if (timings && !features.empty()) {
    wait_for(features.back());
    timings->vision_ms += clock.milliseconds();
  }
  auto batch = input::collate({example});
  batch.tiles = torch::Tensor();  // they have been looked at
  batch = batch.to(assistant.model->llama->embed_tokens->weight.device());
  return assistant.model->splice(batch, std::move(features)).embeds;  // [T, D]
}

}  // namespace llava::generate
