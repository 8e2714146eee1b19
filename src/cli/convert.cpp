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
          "the dtype became narrower");
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
  auto loaded = model::load_pretrained(convert.model, options);
  if (convert.to == "peft") {
    model::save_adapter(convert.output_dir, loaded.model, loaded.model->config.layout,
                        convert.model_base);
    return 0;
  }
  nn::merge_lora(*loaded.model);
  if (convert.to == "projector") {
    model::save_projector(convert.output_dir, loaded.model);
    return 0;
  }
  const auto layout =
      convert.to == "llava-hf" ? model::Layout::hugging_face : model::Layout::original;
  model::save_pretrained(convert.output_dir, loaded.model, layout, loaded.tokenizer_folder);
  if (!convert.verify) return 0;

  // The source as its own files have it, against the result as it now is on the disk.
  model::LoadOptions exact = options;
  exact.dtype = torch::kFloat32;
  auto source = model::load_pretrained(convert.model, exact);
  exact.model_base.clear();
  auto result = model::load_pretrained(convert.output_dir, exact);
  const auto shared = std::min(source.model->config.text.vocab_size,
                               result.model->config.text.vocab_size);  // a layout may add some
  const auto wanted = probe_logits(source.model, shared);
  const double error = logit_error(wanted, probe_logits(result.model, shared));
  const double spread = (wanted.max() - wanted.min()).item<double>();
  const double bound = convert.max_error > 0 ? convert.max_error
                       : options.dtype       ? 0.02 * spread
                                             : 1e-4;
  if (args.common().json) {
    std::fputs(json_text({{"logit_error", error}, {"bound", bound}}).c_str(), stdout);
  } else {
    std::printf("largest logit error %.3g (bound %.3g)\n", error, bound);
  }
  expect(error <= bound, Fault::verification, convert.output_dir, ": logits differ from those of ",
         convert.model, " by ", error, ", more than ", bound,
         "; do not use the result, and report this with both config.json files");
  return 0;
}

}  // namespace llava::cli
