// llava plan: what a training run will need, before anything is loaded.
#include "llava/base/log.h"
#include "llava/cli/args.h"
#include "llava/model/chat_template.h"
#include "llava/nn/device.h"
#include "llava/text/tokenizer.h"
#include "llava/train/measured.h"
#include "llava/train/plan_report.h"

#include "train_options.h"

#include <cstdio>
#include <filesystem>
#include <optional>

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

/// What --measure asks for.
std::optional<train::Measured> measure(const train::PlanRequest& request,
                                       const CommonConfig& common) {
  if (request.plan.measure == 0) return std::nullopt;
  expect(request.plan.measure > 0, Fault::usage, "--measure: ", request.plan.measure,
         " is not a number of steps; take 1 or more");
  expect(!request.train.model.model_name_or_path.empty() && !request.train.data.data_path.empty(),
         Fault::usage, "--measure makes real steps: give --model_name_or_path and --data_path");
  train::Compute compute;
  compute.device = nn::choose_device(common.device);
  compute.dtype = request.train.model.bf16 ? torch::kBFloat16 : torch::kFloat32;
  compute.seed = static_cast<std::uint64_t>(common.seed);
  nn::set_threads(common.threads);
  return train::measure_steps(request, compute, request.plan.measure);
}

}  // namespace

int plan(const std::vector<std::string>& words) {
  train::PlanRequest request;
  Args args("plan", "memory, hours, traffic and disk of a run before it starts", words);
  args.add(request.plan);
  train::ReferenceFlags flags;
  add_train_options(args, request.train, flags);
  if (!args.parse()) return 0;
  auto& train = request.train;
  for (const auto& note :
       train::apply(flags, static_cast<std::uint64_t>(args.common().seed), train))
    log::info(note);
  const auto dtype = nn::choose_dtype(args.common().dtype);
  if (dtype) train.model.bf16 = dtype != torch::kFloat32;
  if (!dtype && !args.given("bf16")) train.model.bf16 = true;  // what these sizes are trained in
  const auto& folder = train.model.model_name_or_path;
  expect(request.plan.shape.empty() != folder.empty(), Fault::usage,
         "llava plan: give a training config (--config FILE, --model_name_or_path DIR) or --shape "
         "NAME, not both");
  train::check_bits(train);
  train::check(train.schedule);
  train::check(train.optimizer);
  dist::check(train.sync);
  dist::check(train.launch);
  request.model =
      folder.empty() ? model::named_shape(request.plan.shape) : train::planned_config(train.model);
  request.processes = std::max<std::int64_t>(1, train.launch.nproc_per_node);
  request.samples = sample_sizes(request, std::max<std::int64_t>(1, args.common().threads));
  const auto plan = train::make_plan(request);
  const auto measured = measure(request, args.common());
  if (args.common().json) {
    Json json = plan_json(request, plan);
    if (measured) json["measured"] = train::measured_json(*measured);
    std::puts(json.dump().c_str());
  } else {
    std::fputs(plan_text(request, plan).c_str(), stdout);
    if (measured) std::fputs(train::measured_text(*measured).c_str(), stdout);
  }
  return plan.fits ? 0 : static_cast<int>(Fault::capacity);
}

}  // namespace llava::cli
