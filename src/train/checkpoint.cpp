#include "llava/train/checkpoint.h"

#include "crc32c.h"
#include "llava/base/files.h"
#include "llava/base/log.h"
#include "llava/dist/gradient_sync.h"
#include "llava/weights/safetensors.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

namespace llava::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kUnfinished = ".unfinished-";
constexpr const char* kManifest = "manifest.json";
constexpr std::int64_t kFormat = 1;

std::string tensors_name(std::int64_t rank) {
  return "state-" + std::to_string(rank) + ".safetensors";
}

/// Where a rank leaves word that its part is written.
std::string receipt_path(const std::string& folder, std::int64_t rank) {
  return folder + "/rank-" + std::to_string(rank) + ".json";
}

/// N of "checkpoint-N"; nothing for other names.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (name.rfind(kPrefix, 0) != 0) return std::nullopt;
  std::int64_t step = 0;
  const char *begin = name.data() + std::strlen(kPrefix), *end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || stop != end || begin == end || step < 0) return std::nullopt;
  return step;
}

std::uint32_t file_checksum(const std::string& path) {
  const MappedFile file(path);
  return crc32c({file.data(), file.size()});
}

/// The manifest's text, its checksum included.
std::string manifest_text(Json manifest) {
  manifest.erase("crc32c");
  const std::uint32_t checksum = crc32c(manifest.dump());
  manifest["crc32c"] = checksum;
  return json_text(manifest);
}

Json read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifest;
  const std::string text = read_file(path);
  const Json manifest = parse_json(text, path);
  expect(manifest.is_object() && text == manifest_text(manifest), Fault::data, path,
         ": its checksum does not fit; the checkpoint is damaged, take an earlier one");
  const Json format = manifest.value("format", Json());
  expect(format == kFormat, Fault::data, path, ": format ", format.dump(), " is not ", kFormat,
         "; it was written by another version of llava");
  return manifest;
}

/// Throws Error(data) unless every file is as the manifest says.
void verify_files(const std::string& folder, const Json& manifest) {
  for (const auto& file : manifest.at("files")) {
    const std::string path = path_inside(folder, file.at("name").get<std::string>(), folder);
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    expect(!error, Fault::data, path, ": is missing; the checkpoint is torn, take an earlier one");
    expect(bytes == file.at("bytes").get<std::uint64_t>(), Fault::data, path, ": has ", bytes,
           " bytes of ", file.at("bytes").dump(), "; the checkpoint is torn, take an earlier one");
    expect(file_checksum(path) == file.at("crc32c").get<std::uint32_t>(), Fault::data, path,
           ": its checksum does not fit; the checkpoint is damaged, take an earlier one");
  }
}

void rename_folder(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  expect(!error, Fault::failure, to, ": cannot be renamed into place (", error.message(),
         "); earlier checkpoints are untouched");
}

/// Makes sure the disk can take the tensors before the first byte is written.
void check_space(const std::string& folder, const weights::StateDict& tensors) {
  std::uintmax_t needed = 1 << 20;
  for (const auto& [name, tensor] : tensors) needed += tensor.nbytes();
  std::error_code error;
  const auto space = fs::space(folder, error);
  expect(error || space.available >= needed, Fault::failure, folder,
         ": the disk has no room for a checkpoint (", needed, " bytes needed, ", space.available,
         " free); free some space, or lower --save_total_limit, and run it again with "
         "--resume_from_checkpoint last");
}

bool is_whole(const std::string& path) {
  try {
    verify_files(path, read_manifest(path));
    return true;
  } catch (const std::exception&) {  // whatever is wrong with it, it is not whole
    return false;
  }
}

}  // namespace

void check(const CheckpointConfig& config) {
  const auto& strategy = config.save_strategy;
  expect(strategy == "steps" || strategy == "epoch" || strategy == "no", Fault::usage,
         "--save_strategy: \"", strategy, "\" is not known; take steps, epoch or no");
  expect(config.save_steps > 0, Fault::usage, "--save_steps: ", config.save_steps,
         " is not a number of steps; take 1 or more, or --save_strategy no");
  expect(config.save_total_limit >= 0, Fault::usage,
         "--save_total_limit: ", config.save_total_limit, " is negative; 0 keeps all");
}

namespace {

/// Waits for the receipts of all ranks and takes them away. Returns the manifest's list of files.
Json collect_receipts(const std::string& folder, const Writers& writers,
                      const std::function<bool()>& gives_up) {
  constexpr std::chrono::milliseconds kPause{20};
  Json files = Json::array();
  for (std::int64_t rank = 0; rank < writers.world_size; ++rank) {
    const std::string path = receipt_path(folder, rank);
    while (!fs::exists(path)) {
      expect(!gives_up || !gives_up(), Fault::peer, folder, ": rank ", rank,
             " did not write its part; earlier checkpoints are untouched");
      std::this_thread::sleep_for(kPause);
    }
    files.push_back(read_json(path));
    fs::remove(path);
  }
  return files;
}

void write_part(const std::string& folder, const weights::StateDict& tensors, std::int64_t rank) {
  check_space(folder, tensors);
  const std::string path = folder + "/" + tensors_name(rank);
  weights::save_safetensors(path, tensors);
  write_file(receipt_path(folder, rank), json_text({{"name", tensors_name(rank)},
                                                    {"bytes", fs::file_size(path)},
                                                    {"crc32c", file_checksum(path)}}));
}

}  // namespace

void write_checkpoint(const std::string& folder, const Checkpoint& checkpoint,
                      const Writers& writers, const std::function<bool()>& gives_up) {
  const std::string path = folder + "/" + kPrefix + std::to_string(checkpoint.step);
  const std::string unfinished = path + kUnfinished + writers.token;
  make_folder(unfinished);
  try {
    write_part(unfinished, checkpoint.tensors, writers.rank);
    if (writers.rank != 0) return;
    const Json files = collect_receipts(unfinished, writers, gives_up);
    write_file(unfinished + "/" + kManifest, manifest_text({{"format", kFormat},
                                                            {"step", checkpoint.step},
                                                            {"files", files},
                                                            {"state", checkpoint.state}}));
    if (fs::exists(path))
      rename_folder(path, path + (is_whole(path) ? ".replaced-" : ".torn-") + writers.token);
    rename_folder(unfinished, path);
  } catch (...) {
    std::error_code ignored;  // the first error is the one to tell
    if (writers.rank == 0) fs::remove_all(unfinished, ignored);
    throw;
  }
  sync_folder(folder);
  fs::remove_all(path + ".replaced-" + writers.token);
}

Checkpoint read_checkpoint(const std::string& path, bool verifies) {
  const Json manifest = read_manifest(path);
  if (verifies) verify_files(path, manifest);
  Checkpoint checkpoint{manifest.at("step").get<std::int64_t>(), manifest.at("state"), {}};
  for (const auto& file : manifest.at("files"))
    for (const auto& [name, tensor] :
         weights::load_safetensors(path_inside(path, file.at("name").get<std::string>(), path)))
      checkpoint.tensors.add(name, tensor);
  return checkpoint;
}

void restore_tensor(const weights::StateDict& saved, const std::string& name,
                    const torch::Tensor& tensor, std::int64_t block) {
  const auto wanted = dist::split_piece(name);
  const std::int64_t unit = name.find("_scale.") == std::string::npos ? 1 : block;
  const std::int64_t first = wanted.begin / unit, size = tensor.numel();
  auto flat = tensor.view({-1});
  std::int64_t filled = 0;
  for (const auto& [saved_name, part] : saved) {
    if (saved_name.compare(0, wanted.parameter.size(), wanted.parameter) != 0) continue;
    const auto piece = dist::split_piece(saved_name);
    if (piece.parameter != wanted.parameter) continue;
    expect(part.scalar_type() == tensor.scalar_type(), Fault::data, "the checkpoint's ", saved_name,
           " is ", c10::toString(part.scalar_type()), ", not ", c10::toString(tensor.scalar_type()),
           "; is it of another run?");
    const std::int64_t at = piece.begin / unit - first;  // of the part, in `flat`
    const std::int64_t begin = std::max<std::int64_t>(0, at);
    const std::int64_t end = std::min(size, at + part.numel());
    if (begin >= end) continue;
    flat.slice(0, begin, end).copy_(part.reshape({-1}).slice(0, begin - at, end - at));
    filled += end - begin;
  }
  expect(filled == size, Fault::data, "the checkpoint holds ", filled, " of the ", size,
         " values of ", name, "; is it of another model?");
}

std::vector<std::string> list_checkpoints(const std::string& folder) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (const auto step = step_of(entry.path().filename().string()))
      found.emplace_back(*step, entry.path().string());
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::string last_checkpoint(const std::string& folder) {
  for (const auto& path : list_checkpoints(folder)) {
    try {
      verify_files(path, read_manifest(path));
      return path;
    } catch (const std::exception& error) {
      log::warn("not going on from ", path, ": ", error.what());
    }
  }
  return "";
}

void prune_checkpoints(const std::string& folder, std::int64_t limit) {
  if (limit == 0) return;
  std::int64_t kept = 0;
  for (const auto& path : list_checkpoints(folder)) {
    // A manifest is enough here: to read every byte of every checkpoint after each save is dear.
    if (!fs::exists(path + "/" + kManifest) || ++kept <= limit) continue;
    // Out of sight before its files go, so that a kill in between leaves no torn checkpoint.
    const std::string doomed = path + kUnfinished + std::to_string(::getpid());
    rename_folder(path, doomed);
    fs::remove_all(doomed);
  }
}

void remove_unfinished_checkpoints(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> doomed;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kPrefix, 0) == 0 && name.find(kUnfinished) != std::string::npos)
      doomed.push_back(entry.path());
  }
  for (const auto& path : doomed) fs::remove_all(path);
}

CheckpointWriter::CheckpointWriter(std::string folder, std::int64_t limit, Writers writers)
    : folder_(std::move(folder)), limit_(limit), writers_(std::move(writers)) {}

CheckpointWriter::~CheckpointWriter() {
  leaves_ = true;
  try {
    wait();
  } catch (const std::exception& error) {
    log::error(error.what());
  }
}

void CheckpointWriter::save(const Checkpoint& checkpoint, std::function<void()> on_saved) {
  wait();
  torch::NoGradGuard no_grad;
  auto snapshot = std::make_shared<Checkpoint>();
  snapshot->step = checkpoint.step;
  snapshot->state = checkpoint.state;
  for (const auto& [name, tensor] : checkpoint.tensors)
    snapshot->tensors.add(name,
                          tensor.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true));
  pending_ = std::async(std::launch::async, [this, snapshot, on_saved = std::move(on_saved)] {
    write_checkpoint(folder_, *snapshot, writers_, [this] { return leaves_.load(); });
    if (writers_.rank != 0) return;
    if (on_saved) on_saved();
    prune_checkpoints(folder_, limit_);
  });
}

void CheckpointWriter::wait() {
  if (pending_.valid()) pending_.get();
}

}  // namespace llava::train
