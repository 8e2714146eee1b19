// llava doctor: the machine and the build, each line ok, warn or FAIL with the cure.
#include "llava/cli/args.h"
#include "llava/media/image.h"
#include "llava/media/video.h"
#include "llava/nn/device.h"
#include "llava/torch.h"
#include "self_test.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <torch/version.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace llava::cli {
namespace {

enum class Verdict { ok, warn, fail };

struct Check {
  std::string name;
  Verdict verdict = Verdict::ok;
  std::string found, cure;
};

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::ostringstream out;
  out.precision(1);
  out << std::fixed;
  (out << ... << parts);
  return out.str();
}

Check check_libtorch() {
  return {"LibTorch", Verdict::ok, text_of(TORCH_VERSION, ", C++", __cplusplus / 100 % 100), ""};
}

Check check_cuda(const nn::CudaReport& cuda) {
  if (!cuda.driver_found)
    return {"CUDA", Verdict::warn, "no NVIDIA driver, so no GPU: everything runs on the CPU",
            "on a machine with a GPU install NVIDIA's driver, then run scripts/setup.sh"};
  if (!cuda.plugin_open)
    return {"CUDA", Verdict::fail,
            "there is a driver, but the GPU plugin cannot be opened: " + cuda.plugin_problem,
            "run scripts/setup.sh --cuda and build again"};
  if (cuda.devices.empty())
    return {"CUDA", Verdict::warn,
            text_of("driver for CUDA ", cuda.driver_version / 1000, ", no device"),
            "check nvidia-smi and CUDA_VISIBLE_DEVICES"};
  std::string found = text_of("driver for CUDA ", cuda.driver_version / 1000, ".",
                              cuda.driver_version % 1000 / 10, ":");
  bool old = cuda.driver_version < cuda.runtime_version / 1000 * 1000;
  for (const auto& device : cuda.devices) {
    found += text_of(" ", device.name, " (", static_cast<double>(device.bytes) / kGiB, " GiB, sm_",
                     device.major, device.minor, ")");
    old = old || device.major * 10 + device.minor < 75;
  }
  return {
      "CUDA", old ? Verdict::fail : Verdict::ok, found,
      old ? "this LibTorch needs a driver for CUDA 13 and a GPU of compute capability 7.5 or newer"
          : ""};
}

Check check_nccl(const nn::CudaReport& cuda) {
  if (!cuda.plugin_open)
    return {"NCCL", Verdict::warn, "not loaded (no GPU); processes on CPUs use Gloo", ""};
  const int v = cuda.nccl_version;
  return {"NCCL", Verdict::ok, text_of(v / 10000, ".", v / 100 % 100, ".", v % 100), ""};
}

Check check_cpu() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, model, flags;
  while (std::getline(info, line) && (model.empty() || flags.empty())) {
    const auto value = line.substr(std::min(line.find(':'), line.size() - 1) + 1);
    if (line.rfind("model name", 0) == 0) model = value;
    if (line.rfind("flags", 0) == 0) flags = value + " ";
  }
  std::string found = model.empty() ? "unknown model" : model.substr(1);
  constexpr std::pair<const char*, const char*> kFeatures[] = {{"avx2", "AVX2"},
                                                               {"avx512f", "AVX512"},
                                                               {"avx512_vnni", "AVX512-VNNI"},
                                                               {"avx512_bf16", "AVX512-BF16"},
                                                               {"amx_bf16", "AMX-BF16"}};
  for (const auto& [flag, name] : kFeatures) {
    const bool has = flags.find(std::string(" ") + flag + " ") != std::string::npos;
    found += text_of(", ", has ? "" : "no ", name);
  }
  const bool avx2 = flags.find(" avx2 ") != std::string::npos;
  return {"CPU", avx2 ? Verdict::ok : Verdict::warn, found,
          avx2 ? "" : "without AVX2 everything is several times slower; use a newer CPU"};
}

Check check_threads() {
  const auto cores = std::thread::hardware_concurrency();
  const int threads = at::get_num_threads();
  const bool few = threads < static_cast<int>(cores) / 2;
  return {"threads", few ? Verdict::warn : Verdict::ok, text_of(threads, " of ", cores, " cores"),
          few ? "OMP_NUM_THREADS holds them back; unset it or give --threads" : ""};
}

Check check_memory() {
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  double value = 0, total = 0, available = 0;
  while (info >> key >> value >> unit) {
    if (key == "MemTotal:") total = value / 1024 / 1024;
    if (key == "MemAvailable:") available = value / 1024 / 1024;
  }
  const bool small = available < 2;
  return {"memory", small ? Verdict::warn : Verdict::ok,
          text_of(available, " GiB free of ", total, " GiB"),
          small ? "close other programs; a 7B model takes 14 GiB in bfloat16" : ""};
}

Check check_codecs() {
  std::string found;
  for (const auto& format : media::image_formats()) found += (found.empty() ? "" : ", ") + format;
  if (media::has_video_files()) return {"codecs", Verdict::ok, found + ", video files", ""};
  return {"codecs", Verdict::warn, found + "; no video files, only folders of frames",
          "install libavformat-dev libavcodec-dev libswscale-dev and build again"};
}

Check check_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const bool low = limit.rlim_cur < 1024;
  return {"open files", low ? Verdict::warn : Verdict::ok, text_of("at most ", limit.rlim_cur),
          low ? "raise it with ulimit -n 4096" : ""};
}

Check check_shared_memory() {
  struct statvfs status {};
  if (::statvfs("/dev/shm", &status) != 0)
    return {
        "shared memory", Verdict::warn, "/dev/shm is missing",
        "NCCL between GPUs of one machine needs it: mount it, or run containers with --ipc=host"};
  const double mib = static_cast<double>(status.f_bavail) * status.f_frsize / 1024 / 1024;
  const bool low = mib < 256;
  return {"shared memory", low ? Verdict::warn : Verdict::ok, text_of(mib, " MiB free in /dev/shm"),
          low ? "NCCL needs more: run containers with --shm-size=1g" : ""};
}

Check check_disk() {
  std::error_code error;
  const auto space = std::filesystem::space(".", error);
  const double gib = static_cast<double>(space.available) / kGiB;
  const bool low = !error && gib < 5;
  return {
      "disk", low ? Verdict::warn : Verdict::ok, text_of(gib, " GiB free here"),
      low ? "a 7B model takes 14 GB and its Stage 2 checkpoint 95 GB; choose a larger disk" : ""};
}

/// Twenty training steps of a tiny model: they must lower its loss to a known value.
Check check_self_test() {
  const auto result = self_test();
  const auto found = [&] {
    std::ostringstream out;
    out.precision(5);
    out << std::fixed << "20 training steps took the loss from " << result.first_loss << " to "
        << result.last_loss;
    return out.str();
  }();
  if (result.passed) return {"self-test", Verdict::ok, found, ""};
  return {"self-test", Verdict::fail, found + text_of(", expected ", result.expected_loss),
          "this build computes wrongly: build again from clean, and if it repeats report it with "
          "this output"};
}

const char* word(Verdict verdict) {
  switch (verdict) {
    case Verdict::ok: return "ok";
    case Verdict::warn: return "warn";
    case Verdict::fail: return "FAIL";
  }
  return "";
}

}  // namespace

int doctor(const std::vector<std::string>& words) {
  Args args("doctor", "check the machine and the build", words);
  if (!args.parse()) return 0;
  nn::set_threads(args.common().threads);
  const auto cuda = nn::cuda_report(/*open_anyway=*/false);
  const std::vector<Check> checks{check_libtorch(), check_cuda(cuda), check_nccl(cuda),
                                  check_cpu(),      check_threads(),  check_memory(),
                                  check_codecs(),   check_files(),    check_shared_memory(),
                                  check_disk(),     check_self_test()};
  bool failed = false;
  Json report{{"ok", true}, {"checks", Json::array()}};
  for (const auto& check : checks) {
    failed = failed || check.verdict == Verdict::fail;
    report["checks"].push_back({{"name", check.name},
                                {"status", word(check.verdict)},
                                {"found", check.found},
                                {"cure", check.cure}});
    if (args.common().json) continue;
    std::printf("%-4s  %-13s  %s\n", word(check.verdict), check.name.c_str(), check.found.c_str());
    if (!check.cure.empty()) std::printf("      %-13s  -> %s\n", "", check.cure.c_str());
  }
  report["ok"] = !failed;
  if (args.common().json) std::fputs(json_text(report).c_str(), stdout);
  return failed ? static_cast<int>(Fault::failure) : 0;
}

}  // namespace llava::cli
