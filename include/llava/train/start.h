// What a run starts from: the model (a whole one, or a tower and an LLM joined by a fresh or a
// pretrained projector) and the training set, from their settings.
#pragma once

#include "llava/data/loader.h"
#include "llava/model/pretrained.h"

#include <memory>
#include <optional>
#include <string>

namespace llava::train {

struct ModelSource {
  std::string model_name_or_path, model_base, vision_tower;
  std::string pretrain_mm_mlp_adapter, lora_weight_path;
  std::string version;
  std::optional<std::string> mm_projector_type;
  std::optional<std::int64_t> mm_vision_select_layer;
  std::optional<std::string> mm_vision_select_feature;
  std::optional<std::string> mm_patch_merge_type;
  std::optional<bool> mm_use_im_start_end;
  std::optional<std::string> image_aspect_ratio;
  std::string image_grid_pinpoints;
  std::int64_t model_max_length = 2048, bits = 16;
  bool bf16 = false;
  std::string gradient_checkpointing = "none";

  template <class Field>
  void fields(Field& field) {
    field("model_name_or_path", model_name_or_path, "folder of a LLaVA model or of an LLM");
    field("model_base", model_base, "folder that a projector-only or LoRA folder builds on");
    field("vision_tower", vision_tower, "folder of a CLIP vision tower");
    field("pretrain_mm_mlp_adapter", pretrain_mm_mlp_adapter,
          "projector of an earlier Stage 1: its output_dir or mm_projector.bin");
    field("lora_weight_path", lora_weight_path, "PEFT folder whose LoRA goes on learning");
    field("version", version,
          "chat template: plain (Stage 1), v1 ...; empty: the model's, plain for "
          "tune_mm_mlp_adapter");
    field("mm_projector_type", mm_projector_type,
          "linear, mlp2x_gelu ...; null: the model's, mlp2x_gelu for a new one");
    field("mm_vision_select_layer", mm_vision_select_layer,
          "hidden state of the tower that is used; null: the model's, -2 for a new one");
    field("mm_vision_select_feature", mm_vision_select_feature,
          "patch, cls_patch or cls; null: the model's, patch for a new one");
    field("mm_patch_merge_type", mm_patch_merge_type,
          "flat, spatial or spatial_unpad; null: the model's, flat for a new one");
    field("mm_use_im_start_end", mm_use_im_start_end,
          "<im_start> and <im_end> around images; null: the model's, false for a new one");
    field("image_aspect_ratio", image_aspect_ratio,
          "square, pad or anyres; null: the model's, pad for a new one");
    field("image_grid_pinpoints", image_grid_pinpoints,
          "grids of anyres, [[w,h],...]; empty: the model's");
    field("model_max_length", model_max_length, "tokens of a sample, pictures' rows included");
    field("bits", bits,
          "bits of the frozen decoder's weights under LoRA: 16 (as dtype says), 8 or 4 (QLoRA)");
    field("bf16", bf16, "weights and activations in bfloat16, fp32 masters of what learns");
    field("gradient_checkpointing", gradient_checkpointing,
          "what is made again in backward instead of kept: none, selective or full");
  }
};

struct DataSource {
  std::string data_path, image_folder, video_folder;
  std::int64_t video_frames = 0;
  media::ImageFlags image;
  std::int64_t per_device_train_batch_size = 8;
  std::int64_t gradient_accumulation_steps = 1;
  std::int64_t tokens_per_micro_batch = 0;
  bool shuffle = true;
  bool group_by_modality_length = false;
  std::string sampler = "balanced";
  std::int64_t dataloader_num_workers = 2;
  std::string on_bad_image = "fail";
  std::string on_overlength = "truncate";
  std::string eval_data_path;
  double val_size = 0;
  std::int64_t per_device_eval_batch_size = 8;

  template <class Field>
  void fields(Field& field) {
    field("data_path", data_path, "training set: LLaVA JSON, JSON lines or a mixture file");
    field("image_folder", image_folder, "folder the set's image names are in");
    field("video_folder", video_folder, "that of its video names; empty: image_folder");
    field("video_frames", video_frames, "most frames taken of a video; 0: as many as suit it");
    image.fields(field);
    field("per_device_train_batch_size", per_device_train_batch_size, "samples of a micro-batch");
    field("gradient_accumulation_steps", gradient_accumulation_steps,
          "micro-batches of a step, on each device");
    field("tokens_per_micro_batch", tokens_per_micro_batch,
          "cut a step's samples into micro-batches of at most this many tokens; 0: by samples");
    field("shuffle", shuffle, "false: the samples in their file's order");
    field("group_by_modality_length", group_by_modality_length,
          "like lengths together, samples with and without pictures apart");
    field("sampler", sampler,
          "balanced: a step's samples are dealt so that micro-batches carry equal tokens; "
          "reference: in the reference's order");
    field("dataloader_num_workers", dataloader_num_workers, "threads that read and decode ahead");
    field("on_bad_image", on_bad_image, "a sample that cannot be read: fail or skip");
    field("on_overlength", on_overlength,
          "a sample longer than model_max_length: error, drop or truncate");
    field("eval_data_path", eval_data_path, "validation set");
    field("val_size", val_size,
          "without one: samples held out of data_path, below 1 as a share of it");
    field("per_device_eval_batch_size", per_device_eval_batch_size,
          "samples of a validation batch");
  }
};

/// Throw Error(usage) naming the setting that makes no sense.
void check(const ModelSource& source);
void check(const DataSource& source);

/// none, selective or full; true and false as Hugging Face's flag has them.  Throws Error(usage).
nn::Recompute read_recompute(const std::string& word);

/// Where and in which random order a run computes.
struct Compute {
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat32;
  std::uint64_t seed = 42;
  std::int64_t rank = 0, world_size = 1;
};

/// The shape of the model that load_model would load or make, from its config files alone.
model::LlavaConfig planned_config(const ModelSource& source);

/// The model, frozen or not as it comes, with its settings as `source` wants them.
/// Throws Error(usage) for settings that contradict the folder, Error(data) for broken files.
model::Pretrained load_model(const ModelSource& source, const Compute& compute);

/// Keeps the decoder's weights in as few bits as asked, LoRA's own and the head's as they are.
void pack_frozen(model::Llava& model, std::int64_t bits);

/// The layout a trained model is saved in: Hugging Face's, or the original one where that cannot
/// express it; an adapter's is its base's.  Throws Error(data) where none can.
model::Layout saved_layout(const model::Pretrained& start);

/// Once what learns is chosen and before a step is made: makes sure that the trained model can be
/// saved, and computes it as the saved layout's readers will.
void settle_layout(model::Pretrained& start);

/// How conversations become this model's input. `template_name` "" is the model's own.
input::Encoder make_encoder(const model::Pretrained& start, const std::string& template_name);

/// The training set and, when asked for, the validation set, ready to be read.
struct TrainingData {
  std::unique_ptr<input::Encoder> encoder;
  std::unique_ptr<data::Records> records, held_out;  // the second may be absent
  std::unique_ptr<data::Loader> train, validation;   // likewise
  data::MediaConfig media;
};
TrainingData open_data(const DataSource& source, const ModelSource& model_source,
                       const model::Pretrained& start, const std::string& template_name,
                       const Compute& compute);

}  // namespace llava::train
