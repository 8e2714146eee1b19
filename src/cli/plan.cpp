// llava plan: what a training run will need, before anything is loaded.
#include "llava/cli/args.h"
#include "llava/model/chat_template.h"
#include "llava/nn/device.h"
#include "llava/text/tokenizer.h"
#include "llava/train/planner.h"

#include <cstdio>
#include <filesystem>

namespace llava::cli {
namespace {

/// Lengths of the user's own data where there are any, by the model's own tokenizer where it has
/// one.
train::SampleSizes sample_sizes(const train::PlanRequest& request, std::int64_t threads) {
  const auto& source = request.train.data;
  if (source.data_path.empty()) return train::assumed_samples(request.plan, request.model);
  const data::Records records(source.data_path);
  expect(records.size() > 0, Fault::data, source.data_path, ": holds no samples");
  data::MediaConfig media;
  media.image_folder = source.image_folder;
  media.video_folder = source.video_folder;
  media.video_frames = source.video_frames;
  media.image = source.image.options();
  const auto& folder = request.train.model.model_name_or_path;
  const bool has_tokenizer =
      !folder.empty() && std::filesystem::exists(folder + "/tokenizer.model");
  if (!has_tokenizer || source.image_folder.empty())
    return train::measure_samples(records, nullptr, request.model, media, threads);
  const input::Encoder encoder(
      text::Tokenizer::load(folder),
      text::find_template(
          model::choose_template(request.model, folder, train::template_name(request.train))),
      {request.model.tiling, request.model.merge, request.model.image_start_end});
  return train::measure_samples(records, &encoder, request.model, media, threads);
}

}  // namespace

int plan(const std::vector<std::string>& words) {
  train::PlanRequest request;
  Args args("plan", "memory, hours, traffic and disk of a run before it starts", words);
  args.add(request.plan);
  args.add(request.train);
  args.optional_value("gradient_checkpointing", "full",
                      {"none", "selective", "full", "true", "false", "True", "False"});
  args.alias("model_name_or_path", "-m");
  if (!args.parse()) return 0;
  auto& train = request.train;
  const auto dtype = nn::choose_dtype(args.common().dtype);
  if (dtype) train.model.bf16 = dtype != torch::kFloat32;
  if (!dtype && !args.given("bf16")) train.model.bf16 = true;  // what these sizes are trained in
  const auto& folder = train.model.model_name_or_path;
  expect(request.plan.shape.empty() != folder.empty(), Fault::usage,
         "llava plan: give a training config (--config FILE, --model_name_or_path DIR) or --shape "
         "NAME, not both");
  train::check(train.schedule);
  train::check(train.optimizer);
  dist::check(train.sync);
  dist::check(train.launch);
  request.model =
      folder.empty() ? model::named_shape(request.plan.shape) : train::planned_config(train.model);
  request.processes = std::max<std::int64_t>(1, train.launch.nproc_per_node);
  request.samples = sample_sizes(request, std::max<std::int64_t>(1, args.common().threads));
  const auto plan = train::make_plan(request);
  std::fputs(args.common().json ? (plan_json(request, plan).dump() + "\n").c_str()
                                : plan_text(request, plan).c_str(),
             stdout);
  return plan.fits ? 0 : static_cast<int>(Fault::capacity);
}

}  // namespace llava::cli
