#include "llava/model/pretrained.h"

#include "folder_files.h"
#include "parts.h"
#include "sources.h"

#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/model/adapter.h"
#include "llava/model/layouts.h"
#include "llava/model/shapes.h"
#include "llava/weights/safetensors.h"
#include "llava/weights/torch_file.h"

#include <algorithm>

namespace llava::model {
namespace {

using torch::Tensor;

/// The projector file of a folder that holds nothing else, or "".
std::string projector_file(const std::string& folder) {
  for (const auto* name : {"/mm_projector.safetensors", "/mm_projector.bin"})
    if (is_file(folder + name)) return folder + name;
  return "";
}

/// A folder of sentence pieces or byte pairs, else its base's.
std::string tokenizer_folder(const std::string& folder, const std::string& base) {
  for (const auto* name : {"/tokenizer.model", "/tokenizer.json"})
    if (is_file(folder + name)) return folder;
  return base.empty() ? folder : base;
}

/// The dtype of a folder's language model: what "as the files are" means for the whole.
torch::ScalarType dtype_of(const Sources& sources) {
  const auto* found = sources.find("llama.embed_tokens.weight");
  return found ? found->scalar_type() : torch::kFloat32;
}

/// The tower's weights, where the whole model's own files lack them.
void add_tower(Sources& sources, const std::string& folder) {
  if (sources.has_prefix("vision.") || !is_folder(folder)) return;
  sources.add(folder, weights::load_folder(folder), {"vision."});
}

/// Whether an adapter's folder holds a tower that learned, which is no longer the public one.
bool holds_tower(const std::string& folder) {
  const auto names = extra_tensors(folder);
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name.starts_with("vision."); });
}

/// What an adapter or a projector's file has to say, over its base's.
void add_addition(Sources& sources, const std::string& folder, const std::string& projector) {
  if (projector.empty()) {
    add_extra_tensors(folder, sources);
  } else {
    sources.add(projector, weights::load_file(projector), {"projector.", "llama.embed_tokens."});
  }
}

Pretrained build(const LlavaConfig& config, Sources& sources, const std::string& tokenizer,
                 const LoadOptions& options) {
  const auto dtype = options.dtype.value_or(dtype_of(sources));
  sources.check(config);
  Pretrained loaded;
  loaded.tokenizer_folder = tokenizer;
  loaded.model = Llava(config, torch::TensorOptions(dtype).device(options.device));
  loaded.narrowed = sources.fill(loaded.model, options.leaves_in_files && options.device.is_cpu());
  loaded.model->eval();
  for (auto& parameter : loaded.model->parameters()) parameter.requires_grad_(false);
  return loaded;
}

/// Our names that a bare language model holds.
const std::vector<std::string> kLanguageParts{"llama.", "lm_head."};

}  // namespace

Pretrained load_pretrained(const std::string& folder, const LoadOptions& options) {
  expect(is_folder(folder), Fault::data, folder, ": there is no such folder");
  const bool has_adapter = is_adapter(folder);
  const bool is_whole = !has_adapter && weights::has_weights(folder);
  const auto projector = is_whole ? "" : projector_file(folder);
  expect(is_whole || has_adapter || !projector.empty(), Fault::data, folder,
         ": no weights here: neither model.safetensors, pytorch_model.bin, their indexes, "
         "adapter_model nor mm_projector.bin");

  std::string base;
  if (!is_whole) {
    base = options.model_base;
    if (base.empty() && has_adapter) base = read_adapter_config(folder).base_model;
    if (base.empty()) base = base_named_by(folder);
    expect(is_folder(base), Fault::data, folder, ": this is ",
           has_adapter ? "a LoRA" : "a projector alone", "; name its base model with --model_base ",
           "DIR", base.empty() ? "" : " (\"" + base + "\" is no folder here)");
  }
  const auto config_folder = is_whole || has_llava_config(folder) ? folder : base;
  auto config = read_llava_config(config_folder, options.vision_tower);
  Sources sources;
  sources.add(is_whole ? folder : base, weights::load_folder(is_whole ? folder : base));
  const bool is_inside = sources.has_prefix("vision.");
  const auto& tower = options.vision_tower.empty() ? config.vision_tower : options.vision_tower;
  add_tower(sources, tower);
  if (!is_whole) add_addition(sources, folder, projector);
  const bool is_original = config.layout == Layout::original;
  if (is_original) config.tower_in_weights = is_inside || (has_adapter && holds_tower(folder));
  expect(!is_original || sources.has_prefix("vision."), Fault::data, config_folder,
         ": the weights hold no vision tower, and \"", tower,
         "\" (mm_vision_tower) is no folder here; name the tower's folder with --vision_tower DIR");
  auto loaded = build(config, sources, tokenizer_folder(folder, base), options);
  loaded.base_folder = lasting_path(is_whole ? folder : base);
  if (has_adapter) load_adapter(folder, loaded.model);
  return loaded;
}

namespace {

/// The token for pictures that a folder's configuration names within its vocabulary, or -1.
std::int64_t image_token_of(const std::string& folder, std::int64_t vocab_size) {
  const auto json = read_json(folder + "/config.json");
  const auto found = json.find("image_token_index");
  if (found == json.end() || !found->is_number_integer()) return -1;
  const auto id = found->get<std::int64_t>();
  return id < vocab_size ? std::max<std::int64_t>(id, -1) : -1;
}

}  // namespace

Pretrained assemble(const std::string& vision_folder, const std::string& language_folder,
                    LlavaConfig wanted, std::uint64_t seed, const LoadOptions& options) {
  wanted.vision = read_clip_config(vision_folder);
  wanted.text = read_llama_config(language_folder);
  read_preprocessor(vision_folder, wanted.vision, wanted.tiling);
  if (wanted.tiling.aspect == media::Aspect::anyres && wanted.tiling.pinpoints.empty())
    wanted.tiling.pinpoints = default_grids(wanted.tiling.tile);
  wanted.merge.side = wanted.vision.side();
  wanted.merge.class_token = wanted.feature_select == "cls_patch";
  wanted.merge.class_only = wanted.feature_select == "cls";
  wanted.vision_tower = lasting_path(vision_folder);
  wanted.tower_in_weights = true;
  // A language model that has talked about pictures keeps its token for them; others are given one
  // when the vocabulary grows.
  wanted.image_token_id = image_token_of(language_folder, wanted.text.vocab_size);
  wanted.video_token_id = -1;
  Sources sources;
  sources.add(language_folder, weights::load_folder(language_folder), kLanguageParts);
  sources.add(vision_folder, weights::load_folder(vision_folder), {"vision."});
  sources.allow_missing({"projector.", "image_newline"});
  auto made = build(wanted, sources, language_folder, options);
  made.base_folder = lasting_path(language_folder);
  initialize(made.model, seed, [](const std::string& name) {
    return name.starts_with("projector.") || name == "image_newline";
  });
  return made;
}

void save_projector(const std::string& folder, Llava& model) {
  torch::NoGradGuard no_grad;
  make_folder(folder);
  weights::StateDict state;
  for (const auto& item : model->named_parameters()) {
    const auto& name = item.key();
    const bool has_own_tokens =
        model->config.image_start_end && name == "llama.embed_tokens.weight";
    if (name.starts_with("projector.") || has_own_tokens)
      state.add(layout_name(name, Layout::original), item.value().detach());
  }
  weights::save_torch_file(folder + "/mm_projector.bin", state);
  auto config = model->config;
  config.torch_dtype = dtype_name(model->head_weight().scalar_type());
  write_file(folder + "/config.json", json_text(original_config(config)));
}

void load_projector(const std::string& path, Llava& model) {
  const auto file = is_folder(path) ? projector_file(path) : path;
  expect(!file.empty(), Fault::data, path, ": no mm_projector.bin or .safetensors here");
  Sources sources;
  sources.add(file, weights::load_file(file), {"projector."});
  sources.check_part(model, "projector.");
  sources.fill(model, /*leaves_in_files=*/false);
}

}  // namespace llava::model
