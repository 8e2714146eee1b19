#include "llava/train/output.h"

#include "llava/base/files.h"
#include "llava/train/identity.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

namespace llava::train {
namespace {

namespace fs = std::filesystem;

void take_lock(int descriptor, const std::string& folder) {
  expect(descriptor >= 0, Fault::usage, folder, ": cannot be written (",
         std::generic_category().message(errno), "); choose an --output_dir you may write to");
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return;
  const bool is_taken = errno == EWOULDBLOCK;
  expect(!is_taken, Fault::usage, folder,
         ": another run is at work here; wait for it, or choose another --output_dir");
}  // else a file system without locks

}  // namespace

OutputFolder::OutputFolder(const TrainConfig& config, const Compute& compute) {
  const std::string& folder = config.loop.output_dir;
  make_folder(folder);
  if (compute.rank != 0) return;
  lock_.open(folder + "/.lock");
  take_lock(lock_.descriptor, folder);
  remove_unfinished_checkpoints(folder);
  if (config.checkpoint.resume_from_checkpoint.empty()) {
    for (const auto& path : list_checkpoints(folder)) {
      expect(config.checkpoint.overwrite_output_dir, Fault::usage, path,
             " is of an earlier run; go on from it with --resume_from_checkpoint last, choose "
             "another --output_dir, or remove it with --overwrite_output_dir");
      fs::remove_all(path);
    }
  }
  write_file(folder + "/config.json", json_text(effective_settings(config, compute)));
  write_file(folder + "/environment.json", json_text(environment(config, compute)));
}

void OutputFolder::Lock::open(const std::string& path) {
  descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
}

OutputFolder::Lock::~Lock() {
  if (descriptor >= 0) ::close(descriptor);
}

}  // namespace llava::train
