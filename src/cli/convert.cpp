// llava convert: between layouts and dtypes; merges LoRA; --verify reads the result back.
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/model/adapter.h"
#include "llava/model/pretrained.h"
#include "llava/nn/device.h"
#include "llava/nn/lora.h"

#include <cstdio>

namespace llava::cli {
namespace {

struct ConvertConfig {
  std::string model, to = "llava-hf", output_dir, model_base, vision_tower;
  bool verify = false;
  double max_error = 0;

  template <class Field>
  void fields(Field& field) {
    field("model", model, "the model folder to read");
    field("to", to, "llava-hf, llava (the original layout), projector or peft");
    field("output_dir", output_dir, "the folder to write");
    field("model_base", model_base, "base model of a projector-only or LoRA folder");
    field("vision_tower", vision_tower, "folder of the vision tower, where the config names none");
    field("verify", verify, "read the result back and compare its logits with the source's");
    field("max_error", max_error,
          "largest logit error that --verify accepts; 0: 1e-4, or 2 % of the logits' spread when "
          "a tensor's dtype became narrower");
  }
};

/// Logits of a fixed prompt of ids below `words` with one picture: what two folders of one model
/// must agree on.
torch::Tensor probe_logits(model::Llava& made, std::int64_t words) {
  const torch::NoGradGuard no_grad;
  const auto& config = made->config;
  input::Picture picture;
  picture.side = config.tiling.tile;
  picture.shape = media::tile_shape(picture.side, picture.side, config.tiling);
  picture.rows = config.is_video ? 0 : media::image_rows(picture.shape, config.merge);
  const auto bytes = picture.tiles() * 3 * picture.side * picture.side;
  for (std::int64_t i = 0; i < bytes; ++i)
    picture.pixels.push_back(static_cast<std::uint8_t>((i * 37 + i / 251) % 256));
  input::Example example;
  example.id = "probe";
  for (std::int64_t i = 0; i < 8; ++i) example.ids.push_back((i * 131 + 1) % words);
  if (!config.is_video) {
    example.ids.insert(example.ids.begin() + 2, input::kImageToken);
    example.pictures.push_back(std::move(picture));
  }
  example.labels.assign(example.ids.size(), input::kIgnore);
  const auto device = made->parameters().front().device();
  const auto spliced = made->embed(input::collate({example}).to(device));
  return made->logits(made->llama(spliced.embeds, spliced.starts)).cpu();
}

/// Greatest difference over the vocabulary rows that both have.
double logit_error(const torch::Tensor& a, const torch::Tensor& b) {
  const auto rows = std::min(a.size(1), b.size(1));
  return (a.narrow(1, 0, rows) - b.narrow(1, 0, rows)).abs().max().item<double>();
}

/// The adapter again, with all that its folder holds beside LoRA's pairs.
void save_peft(const ConvertConfig& convert, model::Pretrained& loaded) {
  expect(model::is_adapter(convert.model), Fault::usage, convert.model,
         ": is no LoRA, and --to peft needs one");
  auto parameters = loaded.model->named_parameters();
  for (const auto& name : model::extra_tensors(convert.model))
    parameters[name].requires_grad_(true);  // what save_adapter takes along
  const auto base = model::adapter_layout(loaded.base_folder);
  const auto layout = base == model::Layout::original ? base : loaded.model->config.layout;
  model::save_adapter(convert.output_dir, loaded.model, layout, loaded.base_folder);
}

/// Writes what is asked for. Returns how many tensors got a narrower dtype than their files have.
std::int64_t write(const ConvertConfig& convert, model::LoadOptions options) {
  if (convert.to == "peft" && !options.dtype)  // an adapter may be wider than its base
    for (const auto& [name, tensor] : model::adapter_tensors(convert.model))
      options.dtype = tensor.scalar_type();
  auto loaded = model::load_pretrained(convert.model, options);
  if (convert.to == "peft") {
    save_peft(convert, loaded);
    return loaded.narrowed;
  }
  nn::merge_lora(*loaded.model);
  if (convert.to == "projector") {
    model::save_projector(convert.output_dir, loaded.model);
    return loaded.narrowed;
  }
  const auto layout =
      convert.to == "llava-hf" ? model::Layout::hugging_face : model::Layout::original;
  model::save_pretrained(convert.output_dir, loaded.model, layout, loaded.tokenizer_folder);
  if (loaded.narrowed > 0 && !options.dtype)
    log::info(loaded.narrowed, " tensors became ",
              model::dtype_name(loaded.model->head_weight().scalar_type()),
              ", narrower than in their files; --dtype float32 keeps every bit");
  return loaded.narrowed;
}

struct Verdict {
  double error, bound;
};

/// The source as its own files have it, against the result as it now is on the disk.
Verdict verify(const ConvertConfig& convert, model::LoadOptions exact, bool is_narrowed) {
  exact.dtype = torch::kFloat32;
  auto source = model::load_pretrained(convert.model, exact);
  exact.model_base.clear();
  auto result = model::load_pretrained(convert.output_dir, exact);
  const auto shared = std::min(source.model->config.text.vocab_size,
                               result.model->config.text.vocab_size);  // a layout may add some
  const auto wanted = probe_logits(source.model, shared);
  const double spread = (wanted.max() - wanted.min()).item<double>();
  const double bound = convert.max_error > 0 ? convert.max_error
                       : is_narrowed         ? 0.02 * spread
                                             : 1e-4;
  return {logit_error(wanted, probe_logits(result.model, shared)), bound};
}

void tell(const ConvertConfig& convert, const std::optional<Verdict>& verdict, bool as_json) {
  if (as_json) {
    const Json none;
    std::fputs(json_text({{"output_dir", convert.output_dir},
                          {"to", convert.to},
                          {"logit_error", verdict ? Json(verdict->error) : none},
                          {"bound", verdict ? Json(verdict->bound) : none}})
                   .c_str(),
               stdout);
  } else if (verdict) {
    std::printf("largest logit error %.3g (bound %.3g)\n", verdict->error, verdict->bound);
  } else if (convert.verify) {
    log::warn("--verify compares whole models; a folder of --to ", convert.to, " is none");
  }
}

}  // namespace

int convert(const std::vector<std::string>& words) {
  ConvertConfig convert;
  Args args("convert", "between layouts and dtypes; merges LoRA", words);
  args.add(convert);
  args.alias("model", "-m");
  if (!args.parse()) return 0;
  expect(!convert.model.empty(), Fault::usage, "llava convert: -m DIR is missing");
  expect(!convert.output_dir.empty(), Fault::usage, "llava convert: --output_dir is missing");
  const std::vector<std::string> targets{"llava-hf", "llava", "projector", "peft"};
  expect(std::find(targets.begin(), targets.end(), convert.to) != targets.end(), Fault::usage,
         "--to: expected llava-hf, llava, projector or peft, found \"", convert.to, "\"",
         suggestion(convert.to, targets));
  nn::set_threads(args.common().threads);

  model::LoadOptions options;
  options.dtype = nn::choose_dtype(args.common().dtype);
  options.model_base = convert.model_base;
  options.vision_tower = convert.vision_tower;
  const auto narrowed = write(convert, options);
  const bool is_whole = convert.to == "llava-hf" || convert.to == "llava";
  std::optional<Verdict> verdict;
  if (convert.verify && is_whole) verdict = verify(convert, options, narrowed > 0);
  tell(convert, verdict, args.common().json);
  expect(!verdict || verdict->error <= verdict->bound, Fault::verification, convert.output_dir,
         ": logits differ from those of ", convert.model, " by ", verdict ? verdict->error : 0,
         ", more than ", verdict ? verdict->bound : 0,
         "; do not use the result, and report this with both config.json files");
  return 0;
}

}  // namespace llava::cli
