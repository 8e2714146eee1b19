// llava init: a new model folder, from a vision tower and an LLM, or random weights of a named
// shape.
#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/model/pretrained.h"
#include "llava/model/shapes.h"
#include "llava/nn/device.h"
#include "llava/text/tokenizer.h"
#include "llava/text/vocabulary.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>
#include <sstream>

namespace llava::cli {
namespace {

struct InitConfig {
  std::string shape, vision_tower, language_model, output_dir, layout = "hf";
  std::string tokenizer, tokenizer_text;
  std::int64_t tokenizer_size = 0;
  std::optional<std::int64_t> vocab_size, hidden_size, intermediate_size, num_hidden_layers,
      num_attention_heads, num_key_value_heads, max_position_embeddings;
  std::optional<std::int64_t> vision_hidden_size, vision_intermediate_size,
      vision_num_hidden_layers, vision_num_attention_heads, image_size, patch_size;
  std::optional<std::string> mm_projector_type, mm_vision_select_feature, image_aspect_ratio;
  std::optional<std::int64_t> mm_vision_select_layer;

  template <class Field>
  void fields(Field& field) {
    field("shape", shape, "random weights of this shape: tiny, llava-1.5-7b, ...");
    field("vision_tower", vision_tower, "folder of a CLIP vision tower to start from");
    field("language_model", language_model, "folder of a Llama, Vicuna or Mistral to start from");
    field("output_dir", output_dir, "the new model folder");
    field("layout", layout, "hf (loads in transformers) or llava (the original's)");
    field("tokenizer", tokenizer, "folder whose tokenizer is taken (with --shape)");
    field("tokenizer_text", tokenizer_text,
          "text file to train a new vocabulary on (with --shape)");
    field("tokenizer_size", tokenizer_size,
          "pieces of the new vocabulary; 0: 400, or as many as the text's characters need");
    field("vocab_size", vocab_size, "rows of the embedding table");
    field("hidden_size", hidden_size, "width of the LLM");
    field("intermediate_size", intermediate_size, "width of the LLM's feed-forward");
    field("num_hidden_layers", num_hidden_layers, "layers of the LLM");
    field("num_attention_heads", num_attention_heads, "heads of the LLM");
    field("num_key_value_heads", num_key_value_heads, "key/value heads of the LLM");
    field("max_position_embeddings", max_position_embeddings, "longest context, tokens");
    field("vision_hidden_size", vision_hidden_size, "width of the vision tower");
    field("vision_intermediate_size", vision_intermediate_size, "width of its feed-forward");
    field("vision_num_hidden_layers", vision_num_hidden_layers, "layers of the vision tower");
    field("vision_num_attention_heads", vision_num_attention_heads, "heads of the vision tower");
    field("image_size", image_size, "pixels across a tile");
    field("patch_size", patch_size, "pixels across a patch");
    field("mm_projector_type", mm_projector_type, "linear, mlp2x_gelu, mlpNx_gelu or identity");
    field("mm_vision_select_layer", mm_vision_select_layer, "hidden state the features come from");
    field("mm_vision_select_feature", mm_vision_select_feature, "patch, cls_patch or cls");
    field("image_aspect_ratio", image_aspect_ratio, "square, pad or anyres");
  }
};

template <class T>
void override_with(const std::optional<T>& given, T& value) {
  if (given) value = *given;
}

media::Aspect aspect_named(const std::string& name) {
  if (name == "square") return media::Aspect::square;
  if (name == "pad") return media::Aspect::pad;
  if (name == "anyres") return media::Aspect::anyres;
  fail(Fault::usage, "--image_aspect_ratio: expected square, pad or anyres, found \"", name, "\"");
}

/// What the command line says of a model, over what its shape says.
void apply(const InitConfig& init, model::LlavaConfig& config) {
  auto& text = config.text;
  auto& vision = config.vision;
  const bool own_heads = init.hidden_size || init.num_attention_heads;
  override_with(init.vocab_size, text.vocab_size);
  override_with(init.hidden_size, text.hidden_size);
  override_with(init.intermediate_size, text.intermediate_size);
  override_with(init.num_hidden_layers, text.num_hidden_layers);
  override_with(init.num_attention_heads, text.num_attention_heads);
  if (init.num_attention_heads) text.num_key_value_heads = text.num_attention_heads;
  override_with(init.num_key_value_heads, text.num_key_value_heads);
  override_with(init.max_position_embeddings, text.max_position_embeddings);
  override_with(init.vision_hidden_size, vision.hidden_size);
  override_with(init.vision_intermediate_size, vision.intermediate_size);
  override_with(init.vision_num_hidden_layers, vision.num_hidden_layers);
  override_with(init.vision_num_attention_heads, vision.num_attention_heads);
  override_with(init.image_size, vision.image_size);
  override_with(init.patch_size, vision.patch_size);
  override_with(init.mm_projector_type, config.projector_type);
  override_with(init.mm_vision_select_feature, config.feature_select);
  if (init.mm_vision_select_layer) config.feature_layers = {*init.mm_vision_select_layer};
  if (own_heads) {
    expect(text.num_attention_heads > 0 && text.hidden_size % text.num_attention_heads == 0,
           Fault::usage, "--num_attention_heads ", text.num_attention_heads,
           " does not divide --hidden_size ", text.hidden_size);
    text.head_dim = text.hidden_size / text.num_attention_heads;
  }
  config.tiling.tile = config.tiling.shortest_edge = vision.image_size;
  config.merge.side = vision.side();
  model::use_aspect(config, init.image_aspect_ratio ? aspect_named(*init.image_aspect_ratio)
                                                    : config.tiling.aspect);
}

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

/// Pieces for bytes, control tokens, every character of the text, and 100 that join them.
std::int64_t pieces_for(const std::vector<std::string>& lines) {
  std::set<std::string> characters;
  for (const auto& line : lines)
    for (std::size_t begin = 0, end = 0; begin < line.size(); begin = end) {
      for (end = begin + 1; end < line.size() && (line[end] & 0xc0) == 0x80;) ++end;
      characters.insert(line.substr(begin, end - begin));
    }
  return std::max<std::int64_t>(400, 259 + static_cast<std::int64_t>(characters.size()) + 100);
}

std::string new_vocabulary(const InitConfig& init) {
  if (init.tokenizer_text.empty()) return text::character_vocabulary();
  const auto lines = lines_of(init.tokenizer_text);
  return text::train_vocabulary(lines,
                                init.tokenizer_size > 0 ? init.tokenizer_size : pieces_for(lines));
}

/// The folder of the new model's tokenizer; made in output_dir when it is a new one.
std::string tokenizer_folder(const InitConfig& init) {
  if (!init.tokenizer.empty()) return init.tokenizer;
  text::save_tokenizer(init.output_dir, new_vocabulary(init));
  return init.output_dir;
}

/// Ids that the model shares with its tokenizer.
void match_tokenizer(const InitConfig& init, const text::Tokenizer& tokenizer,
                     model::LlavaConfig& config) {
  auto& text = config.text;
  const auto needed = tokenizer.size();
  if (!init.vocab_size && text.vocab_size < needed) text.vocab_size = (needed + 63) / 64 * 64;
  expect(text.vocab_size >= needed, Fault::usage, "--vocab_size ", text.vocab_size,
         ": the tokenizer has ", needed, " tokens");
  text.bos_token_id = tokenizer.bos();
  if (tokenizer.eos()) text.eos_token_ids = {*tokenizer.eos()};
  text.pad_token_id = tokenizer.pad();
  if (const auto image = tokenizer.special("<image>")) config.image_token_id = *image;
}

}  // namespace

int init(const std::vector<std::string>& words) {
  InitConfig init;
  Args args("init", "make a new model folder", words);
  args.add(init);
  if (!args.parse()) return 0;
  expect(!init.output_dir.empty(), Fault::usage, "llava init: --output_dir is missing");
  expect(init.layout == "hf" || init.layout == "llava", Fault::usage,
         "--layout: expected hf or llava, found \"", init.layout, "\"");
  const bool assembles = !init.vision_tower.empty() || !init.language_model.empty();
  expect(assembles != !init.shape.empty(), Fault::usage,
         "llava init: give --shape NAME, or --vision_tower DIR and --language_model DIR");
  nn::set_threads(args.common().threads);
  const auto layout = init.layout == "hf" ? model::Layout::hugging_face : model::Layout::original;
  const auto dtype = nn::choose_dtype(args.common().dtype);
  const auto seed = static_cast<std::uint64_t>(args.common().seed);
  make_folder(init.output_dir);

  model::Llava made{nullptr};
  std::string tokenizer;
  if (assembles) {
    expect(!init.vision_tower.empty() && !init.language_model.empty(), Fault::usage,
           "llava init: --vision_tower and --language_model go together");
    auto wanted = model::named_shape("llava-1.5-7b");
    override_with(init.mm_projector_type, wanted.projector_type);
    override_with(init.mm_vision_select_feature, wanted.feature_select);
    if (init.mm_vision_select_layer) wanted.feature_layers = {*init.mm_vision_select_layer};
    wanted.layout = layout;
    if (init.image_aspect_ratio) model::use_aspect(wanted, aspect_named(*init.image_aspect_ratio));
    wanted.tiling.pinpoints.clear();  // for the tower's own tiles
    model::LoadOptions options;
    options.dtype = dtype;
    auto pretrained =
        model::assemble(init.vision_tower, init.language_model, wanted, seed, options);
    made = pretrained.model;
    tokenizer = pretrained.tokenizer_folder;
  } else {
    auto config = model::named_shape(init.shape);
    config.layout = layout;
    apply(init, config);
    tokenizer = tokenizer_folder(init);
    match_tokenizer(init, text::Tokenizer::load(tokenizer), config);
    made = model::Llava(config, torch::TensorOptions().dtype(dtype.value_or(torch::kFloat32)));
    model::initialize(made, seed);
  }
  model::save_pretrained(init.output_dir, made, layout, tokenizer);
  std::int64_t parameters = 0;
  for (const auto& parameter : made->parameters()) parameters += parameter.numel();
  if (args.common().json) {
    std::fputs(json_text({{"output_dir", init.output_dir}, {"num_parameters", parameters}}).c_str(),
               stdout);
  } else {
    log::info("a model of ", parameters, " parameters is in ", init.output_dir);
  }
  return 0;
}

}  // namespace llava::cli
