#include "llava/train/start.h"

#include "llava/base/log.h"
#include "llava/model/adapter.h"
#include "llava/model/chat_template.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

namespace llava::train {
namespace {

namespace fs = std::filesystem;

/// Whether a folder holds a whole LLaVA, a projector or an adapter of one, rather than an LLM.
bool is_llava(const std::string& folder) {
  if (model::is_adapter(folder)) return true;
  const Json config = read_json(folder + "/config.json");
  expect(config.is_object(), Fault::data, folder, "/config.json: expected an object");
  for (const char* key : {"vision_config", "mm_vision_tower", "vision_tower"})
    if (config.contains(key) && !config[key].is_null()) return true;
  return false;
}

media::Aspect read_aspect(const std::string& word) {
  if (word == "square") return media::Aspect::square;
  if (word == "pad") return media::Aspect::pad;
  expect(word == "anyres" || word.rfind("anyres_max_", 0) == 0, Fault::usage,
         "--image_aspect_ratio: \"", word, "\" is not known", suggestion(word, {"square", "pad"}),
         "; take square, pad, anyres or anyres_max_N");
  return media::Aspect::anyres;
}

std::vector<std::pair<std::int64_t, std::int64_t>> read_pinpoints(const std::string& text) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pinpoints;
  const Json list = parse_json(text, "--image_grid_pinpoints");
  for (const auto& item : list) {
    const bool is_pair = item.is_array() && item.size() == 2 && item[0].is_number_integer() &&
                         item[1].is_number_integer();
    expect(is_pair, Fault::usage, "--image_grid_pinpoints: expected [[width,height],...], found ",
           text);
    pinpoints.emplace_back(item[0].get<std::int64_t>(), item[1].get<std::int64_t>());
  }
  return pinpoints;
}

/// Settings that do not touch a weight, as the run wants them.
void apply_settings(const ModelSource& source, model::LlavaConfig& config) {
  if (source.mm_vision_select_layer) config.feature_layers = {*source.mm_vision_select_layer};
  if (source.mm_vision_select_feature) {
    config.feature_select = *source.mm_vision_select_feature;
    config.merge.class_token = config.feature_select == "cls_patch";
    config.merge.class_only = config.feature_select == "cls";
  }
  if (source.image_aspect_ratio) {
    const std::string& word = *source.image_aspect_ratio;
    config.tiling.aspect = read_aspect(word);
    constexpr std::string_view limit = "anyres_max_";
    config.merge.max_tiles = 0;
    if (word.rfind(limit, 0) == 0)
      parse_value(word.substr(limit.size()), "--image_aspect_ratio", config.merge.max_tiles);
  }
  if (!source.image_grid_pinpoints.empty()) {
    config.tiling.pinpoints = read_pinpoints(source.image_grid_pinpoints);
    if (config.tiling.height_first)  // listed as transformers does it
      for (auto& [first, second] : config.tiling.pinpoints) std::swap(first, second);
  }
  if (source.mm_patch_merge_type) {
    config.merge.spatial = source.mm_patch_merge_type->rfind("spatial", 0) == 0;
    config.merge.unpad = source.mm_patch_merge_type->find("unpad") != std::string::npos;
  }
  expect(config.tiling.aspect != media::Aspect::anyres || !config.tiling.pinpoints.empty(),
         Fault::usage,
         "--image_aspect_ratio anyres needs --image_grid_pinpoints: the model has none");
}

/// Throws unless what the run says of the weights is what the folder has.
void expect_agreement(const ModelSource& source, const model::LlavaConfig& config) {
  expect(!source.mm_projector_type || *source.mm_projector_type == config.projector_type,
         Fault::usage, "--mm_projector_type is ", source.mm_projector_type.value_or(""), ", but ",
         source.model_name_or_path, " has ", config.projector_type,
         "; leave the option out, or start from the LLM and --vision_tower for a new projector");
  expect(!source.mm_use_im_start_end || *source.mm_use_im_start_end == config.image_start_end,
         Fault::usage, "--mm_use_im_start_end is not as ", source.model_name_or_path,
         " has it; leave the option out");
}

/// A model that merges tiles with a newline needs the vector, also when the folder has none yet.
void ensure_newline(model::Llava& model, std::uint64_t seed) {
  if (!model->config.merge.unpad || model->image_newline.defined()) return;
  const auto width = model->config.text.hidden_size;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto values = torch::randn({width}, generator) / std::sqrt(static_cast<double>(width));
  const auto& like = model->llama->norm->weight;
  model->image_newline = model->register_parameter("image_newline", values.to(like.options()));
  model->config.has_newline = true;
}

bool has_adapter(model::Llava model) {
  const auto linears = nn::named_linears(*model);
  return std::any_of(linears.begin(), linears.end(),
                     [](const auto& named) { return named.second->has_lora(); });
}

/// The file behind --pretrain_mm_mlp_adapter, which may name the folder of a Stage 1.
std::string projector_file(const std::string& path) {
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"mm_projector.bin", "mm_projector.safetensors"})
    if (fs::exists(fs::path(path) / name)) return (fs::path(path) / name).string();
  fail(Fault::data, path, ": holds no mm_projector.bin; name the output_dir of a Stage 1");
}

model::Pretrained assemble_new(const ModelSource& source, const Compute& compute,
                               const model::LoadOptions& options) {
  expect(!source.vision_tower.empty(), Fault::usage, source.model_name_or_path,
         " is an LLM without a vision tower; name a CLIP folder with --vision_tower");
  auto wanted = model::named_shape("llava-1.5-7b");
  wanted.projector_type = source.mm_projector_type.value_or(wanted.projector_type);
  apply_settings(source, wanted);
  wanted.has_newline = wanted.merge.unpad;
  expect(!source.mm_use_im_start_end.value_or(false), Fault::usage,
         "--mm_use_im_start_end: a new model is made without <im_start> and <im_end>; start from a "
         "folder that has them");
  return model::assemble(source.vision_tower, source.model_name_or_path, wanted, compute.seed,
                         options);
}

}  // namespace

void check(const ModelSource& source) {
  expect(!source.model_name_or_path.empty(), Fault::usage,
         "--model_name_or_path is missing: the folder of a LLaVA model or of an LLM");
  expect(source.model_max_length > 0, Fault::usage, "--model_max_length: ", source.model_max_length,
         " is not a number of tokens");
  if (source.image_aspect_ratio) read_aspect(*source.image_aspect_ratio);
  if (!source.image_grid_pinpoints.empty()) read_pinpoints(source.image_grid_pinpoints);
  const std::vector<std::string> merges{"flat", "spatial", "spatial_unpad"};
  if (source.mm_patch_merge_type)
    expect(std::find(merges.begin(), merges.end(), *source.mm_patch_merge_type) != merges.end(),
           Fault::usage, "--mm_patch_merge_type: \"", *source.mm_patch_merge_type,
           "\" is not known; take flat, spatial or spatial_unpad");
  const std::vector<std::string> features{"patch", "cls_patch", "cls"};
  if (source.mm_vision_select_feature)
    expect(std::find(features.begin(), features.end(), *source.mm_vision_select_feature) !=
               features.end(),
           Fault::usage, "--mm_vision_select_feature: \"", *source.mm_vision_select_feature,
           "\" is not known; take patch, cls_patch or cls");
  read_recompute(source.gradient_checkpointing);
}

void check(const DataSource& source) {
  expect(!source.data_path.empty(), Fault::usage,
         "--data_path is missing: the training set, a file of LLaVA JSON");
  const auto positive = [](const char* name, std::int64_t value) {
    expect(value > 0, Fault::usage, "--", name, ": ", value, " is not positive");
  };
  positive("per_device_train_batch_size", source.per_device_train_batch_size);
  positive("per_device_eval_batch_size", source.per_device_eval_batch_size);
  positive("gradient_accumulation_steps", source.gradient_accumulation_steps);
  expect(source.tokens_per_micro_batch >= 0, Fault::usage,
         "--tokens_per_micro_batch: ", source.tokens_per_micro_batch, " is negative");
  expect(source.dataloader_num_workers >= 0, Fault::usage,
         "--dataloader_num_workers: ", source.dataloader_num_workers, " is negative");
  expect(source.sampler == "balanced" || source.sampler == "reference", Fault::usage,
         "--sampler: \"", source.sampler, "\" is not known; take balanced or reference");
  expect(source.val_size >= 0, Fault::usage, "--val_size: ", source.val_size, " is negative");
  expect(source.val_size == 0 || source.eval_data_path.empty(), Fault::usage,
         "--val_size and --eval_data_path both name samples to validate on; give one");
  data::parse_on_bad_image(source.on_bad_image);
  data::parse_on_overlength(source.on_overlength);
}

void pack_frozen(model::Llava& model, std::int64_t bits) {
  if (bits < 16) nn::pack_linears(*model->llama, bits == 8 ? nn::Packing::int8 : nn::Packing::int4);
}

model::Layout saved_layout(const model::Pretrained& start) {
  const auto& config = start.model->config;
  const bool is_original_adapter =
      has_adapter(start.model) &&
      model::adapter_layout(start.base_folder) == model::Layout::original;
  if (!is_original_adapter) {
    try {
      model::hugging_face_config(config);
      return model::Layout::hugging_face;
    } catch (const Error&) {  // it has no place for something; the original layout may
    }
  }
  model::original_config(config);
  return model::Layout::original;
}

void settle_layout(model::Pretrained& start) {
  auto& config = start.model->config;
  const auto layout = saved_layout(start);
  if (layout == config.layout) return;
  const bool is_hugging_face = layout == model::Layout::hugging_face;
  if (is_hugging_face) {
    log::info("the model will be saved in Hugging Face's layout; llava convert --to llava makes ",
              "an original one of it");
  } else {
    log::info("the model will be saved in the original LLaVA layout: Hugging Face's ",
              has_adapter(start.model) ? "has no adapters of a bare LLM" : "cannot express it");
  }
  config.merge.hugging_face = is_hugging_face;
  if (std::exchange(config.tiling.height_first, is_hugging_face) != is_hugging_face)
    for (auto& [first, second] : config.tiling.pinpoints) std::swap(first, second);
}

nn::Recompute read_recompute(const std::string& word) {
  if (word == "none" || word == "false" || word == "False") return nn::Recompute::none;
  if (word == "selective") return nn::Recompute::selective;
  expect(word == "full" || word == "true" || word == "True", Fault::usage,
         "--gradient_checkpointing: \"", word, "\" is not known; take none, selective or full");
  return nn::Recompute::full;
}

model::LlavaConfig planned_config(const ModelSource& source) {
  model::LlavaConfig config;
  if (is_llava(source.model_name_or_path)) {
    config = model::read_llava_config(source.model_name_or_path, source.vision_tower);
  } else {
    expect(!source.vision_tower.empty(), Fault::usage, source.model_name_or_path,
           " is an LLM without a vision tower; name a CLIP folder with --vision_tower");
    config.text = model::read_llama_config(source.model_name_or_path);
    config.vision = model::read_clip_config(source.vision_tower);
    config.projector_type = source.mm_projector_type.value_or(config.projector_type);
    config.tiling.aspect = media::Aspect::pad;
    config.tiling.tile = config.vision.image_size;
    config.merge.side = config.vision.side();
  }
  apply_settings(source, config);
  config.has_newline = config.has_newline || config.merge.unpad;
  return config;
}

model::Pretrained load_model(const ModelSource& source, const Compute& compute) {
  const model::LoadOptions options{.device = compute.device,
                                   .dtype = compute.dtype,
                                   .model_base = source.model_base,
                                   .vision_tower = source.vision_tower};
  model::Pretrained start;
  if (is_llava(source.model_name_or_path)) {
    start = model::load_pretrained(source.model_name_or_path, options);
    expect_agreement(source, start.model->config);
    apply_settings(source, start.model->config);
    ensure_newline(start.model, compute.seed);
  } else {
    start = assemble_new(source, compute, options);
  }
  if (!source.pretrain_mm_mlp_adapter.empty())
    model::load_projector(projector_file(source.pretrain_mm_mlp_adapter), start.model);
  if (!source.lora_weight_path.empty()) model::load_adapter(source.lora_weight_path, start.model);
  pack_frozen(start.model, source.bits);
  start.model->llama->recompute = read_recompute(source.gradient_checkpointing);
  start.model->vision->recompute = start.model->llama->recompute;
  return start;
}

input::Encoder make_encoder(const model::Pretrained& start, const std::string& template_name) {
  const auto& config = start.model->config;
  return {
      text::Tokenizer::load(start.tokenizer_folder),
      text::find_template(model::choose_template(config, start.tokenizer_folder, template_name)),
      {config.tiling, config.merge, config.image_start_end}};
}

TrainingData open_data(const DataSource& source, const ModelSource& model_source,
                       const model::Pretrained& start, const std::string& template_name,
                       const Compute& compute) {
  TrainingData opened;
  opened.encoder = std::make_unique<input::Encoder>(make_encoder(start, template_name));
  opened.records = std::make_unique<data::Records>(source.data_path, compute.seed);
  const std::int64_t count = opened.records->size();
  expect(count > 0, Fault::data, source.data_path, ": holds no samples");
  if (!source.eval_data_path.empty())
    opened.held_out = std::make_unique<data::Records>(source.eval_data_path, compute.seed);
  if (source.val_size > 0) {
    const double held =
        source.val_size < 1 ? source.val_size * static_cast<double>(count) : source.val_size;
    auto parts = opened.records->hold_out(std::llround(std::ceil(held)), compute.seed);
    opened.records = std::make_unique<data::Records>(std::move(parts.first));
    opened.held_out = std::make_unique<data::Records>(std::move(parts.second));
  }

  data::LoaderConfig loader;
  loader.media.image_folder = source.image_folder;
  loader.media.video_folder = source.video_folder;
  loader.media.video_frames = source.video_frames;
  loader.media.image = source.image.options();
  opened.media = loader.media;
  loader.workers = std::max<std::int64_t>(1, source.dataloader_num_workers);
  loader.max_tokens = model_source.model_max_length;
  loader.on_bad_image = data::parse_on_bad_image(source.on_bad_image);
  loader.on_overlength = data::parse_on_overlength(source.on_overlength);
  loader.pinned = compute.device.is_cuda();

  // A token budget is a promise about memory, so samples are measured for it; to balance, an
  // estimate is enough.
  const auto lengths_of = [&](const data::Records& records) {
    if (source.tokens_per_micro_batch > 0)
      return data::measure_lengths(records, *opened.encoder, loader.media, loader.workers);
    const auto side = start.model->config.tiling.tile;
    return data::estimate_lengths(records, opened.encoder->measure(side, side).rows,
                                  loader.workers);
  };
  const data::SamplerConfig sampler{.order = !source.shuffle ? data::Order::sequential
                                             : source.group_by_modality_length
                                                 ? data::Order::grouped
                                                 : data::Order::shuffled,
                                    .balanced = source.sampler == "balanced",
                                    .rows = source.per_device_train_batch_size,
                                    .accumulation = source.gradient_accumulation_steps,
                                    .token_budget = source.tokens_per_micro_batch,
                                    .seed = compute.seed,
                                    .rank = compute.rank,
                                    .world = compute.world_size};
  opened.train =
      std::make_unique<data::Loader>(*opened.records, *opened.encoder,
                                     data::Sampler(lengths_of(*opened.records), sampler), loader);
  if (!opened.held_out) return opened;

  data::SamplerConfig in_order{.order = data::Order::sequential,
                               .rows = source.per_device_eval_batch_size,
                               .token_budget = source.tokens_per_micro_batch,
                               .seed = compute.seed,
                               .rank = compute.rank,
                               .world = compute.world_size};
  loader.workers = 1;
  opened.validation =
      std::make_unique<data::Loader>(*opened.held_out, *opened.encoder,
                                     data::Sampler(lengths_of(*opened.held_out), in_order), loader);
  return opened;
}

}  // namespace llava::train
