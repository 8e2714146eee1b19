#include "rendezvous.h"

#include "llava/base/check.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>

namespace llava::dist {
namespace {

constexpr int kDefaultPort = 29500;  // torchrun's

std::optional<std::string> text_of(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

/// A number of the environment.
std::optional<std::int64_t> number_of(const char* name) {
  const auto text = text_of(name);
  if (!text) return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  expect(error == std::errc() && end == text->data() + text->size() && value >= 0, Fault::usage,
         "the environment variable ", name, " is \"", *text,
         "\", expected a whole number; the launcher sets it, unset it to run alone");
  return value;
}

std::int64_t needed_number(const char* name, const char* because) {
  const auto value = number_of(name);
  expect(value.has_value(), Fault::usage, "the environment variable ", name, " is missing while ",
         because, " is set; start every process through one launcher, or unset ", because);
  return *value;
}

/// First host of a Slurm list: "node[003-005,7],other" -> "node003".
std::string first_host(const std::string& list) {
  const auto bracket = list.find('[');
  const auto comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const auto end = list.find_first_of("-,]", bracket);
  const auto close = list.find(']', bracket);
  expect(end != std::string::npos && close != std::string::npos, Fault::usage,
         "SLURM_JOB_NODELIST is \"", list, "\", which is no list of hosts; set MASTER_ADDR");
  const auto tail = list.substr(close + 1, list.find(',', close) - close - 1);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) + tail;
}

/// Tasks on node `node` of Slurm's "2(x3),1".
std::int64_t tasks_on_node(const std::string& list, std::int64_t node) {
  std::size_t at = 0;
  while (at < list.size()) {
    const int tasks = std::atoi(list.c_str() + at);
    const auto comma = std::min(list.find(',', at), list.size());
    const auto times = list.find("(x", at);
    const int nodes = times < comma ? std::atoi(list.c_str() + times + 2) : 1;
    if (node < nodes) return tasks;
    node -= nodes;
    at = comma + 1;
  }
  return 1;
}

/// A port that all processes of a job derive alike.
int job_port(const std::string& job) {
  return 15000 + static_cast<int>(std::hash<std::string>{}(job) % 10000);
}

Place torchrun_place() {
  Place place;
  place.launcher = "torchrun";
  place.rank = needed_number("RANK", "WORLD_SIZE");
  place.world_size = needed_number("WORLD_SIZE", "RANK");
  place.local_rank = number_of("LOCAL_RANK").value_or(place.rank);
  place.local_world_size = number_of("LOCAL_WORLD_SIZE").value_or(place.world_size);
  place.agent_store = text_of("TORCHELASTIC_USE_AGENT_STORE") == "True";
  place.attempt = text_of("TORCHELASTIC_RESTART_COUNT").value_or("0");
  return place;
}

Place open_mpi_place() {
  constexpr auto because = "OMPI_COMM_WORLD_SIZE";
  Place place;
  place.launcher = "Open MPI";
  place.rank = needed_number("OMPI_COMM_WORLD_RANK", because);
  place.world_size = needed_number("OMPI_COMM_WORLD_SIZE", because);
  place.local_rank = needed_number("OMPI_COMM_WORLD_LOCAL_RANK", because);
  place.local_world_size = needed_number("OMPI_COMM_WORLD_LOCAL_SIZE", because);
  if (const auto job = text_of("PMIX_NAMESPACE")) place.master_port = job_port(*job);
  return place;
}

Place mpich_place() {
  Place place;
  place.launcher = "MPI";
  place.rank = needed_number("PMI_RANK", "PMI_SIZE");
  place.world_size = needed_number("PMI_SIZE", "PMI_RANK");
  place.local_rank = number_of("MPI_LOCALRANKID").value_or(place.rank);
  place.local_world_size = number_of("MPI_LOCALNRANKS").value_or(place.world_size);
  return place;
}

Place slurm_place() {
  constexpr auto because = "SLURM_STEP_NUM_TASKS";
  Place place;
  place.launcher = "Slurm";
  place.rank = needed_number("SLURM_PROCID", because);
  place.world_size = needed_number("SLURM_STEP_NUM_TASKS", because);
  place.local_rank = needed_number("SLURM_LOCALID", because);
  place.local_world_size = tasks_on_node(text_of("SLURM_STEP_TASKS_PER_NODE").value_or("1"),
                                         number_of("SLURM_NODEID").value_or(0));
  if (!place.one_machine())
    place.master_addr = first_host(text_of("SLURM_JOB_NODELIST").value_or("127.0.0.1"));
  if (const auto job = text_of("SLURM_JOB_ID"))
    place.master_port = job_port(*job + "." + text_of("SLURM_STEP_ID").value_or("0"));
  return place;
}

void check_place(const Place& place, bool address_given) {
  expect(place.world_size >= 1 && place.rank < place.world_size, Fault::usage, "rank ", place.rank,
         " of ", place.world_size,
         " processes does not exist; ranks count from 0 (RANK, WORLD_SIZE)");
  expect(place.local_world_size >= 1 && place.local_rank < place.local_world_size &&
             place.local_world_size <= place.world_size,
         Fault::usage, "local rank ", place.local_rank, " of ", place.local_world_size,
         " processes on this machine, ", place.world_size,
         " in all, cannot be; check LOCAL_RANK and LOCAL_WORLD_SIZE");
  expect(
      place.one_machine() || address_given || place.master_addr != "127.0.0.1", Fault::usage,
      "the run spans several machines but MASTER_ADDR is not set; give every process the address "
      "of the first machine (mpirun -x MASTER_ADDR=host -x MASTER_PORT=29500)");
  expect(place.master_port > 0 && place.master_port < 65536, Fault::usage, "MASTER_PORT is ",
         place.master_port, ", expected 1 to 65535");
}

/// Throws unless the store's host name means something here.
void check_host(const std::string& host) {
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), nullptr, nullptr, &found);
  if (error == 0) ::freeaddrinfo(found);
  expect(error == 0, Fault::usage, "MASTER_ADDR \"", host, "\" is no known host (",
         ::gai_strerror(error), "); give the name or address of the machine of rank 0");
}

/// The source address this machine would use towards `host`; sends nothing.
std::string address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), "9", &hints, &found) != 0) return "";
  std::string address;
  const int descriptor = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in own{};
  socklen_t size = sizeof(own);
  char text[INET_ADDRSTRLEN] = "";
  if (descriptor >= 0 && ::connect(descriptor, found->ai_addr, found->ai_addrlen) == 0 &&
      ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &size) == 0 &&
      ::inet_ntop(AF_INET, &own.sin_addr, text, sizeof(text)) != nullptr)
    address = text;
  if (descriptor >= 0) ::close(descriptor);
  ::freeaddrinfo(found);
  return address;
}

}  // namespace

Place place_from_environment() {
  Place place;
  if (text_of("RANK") || text_of("WORLD_SIZE")) {
    place = torchrun_place();
  } else if (text_of("OMPI_COMM_WORLD_SIZE")) {
    place = open_mpi_place();
  } else if (text_of("PMI_SIZE")) {
    place = mpich_place();
  } else if (text_of("SLURM_STEP_NUM_TASKS")) {  // a step of srun; a batch script alone has it not
    place = slurm_place();
  } else {
    return place;
  }
  const auto address = text_of("MASTER_ADDR");
  if (address) place.master_addr = *address;
  if (const auto port = number_of("MASTER_PORT")) place.master_port = *port;
  if (place.master_port == 0) place.master_port = kDefaultPort;
  check_place(place, address.has_value());
  return place;
}

double join_seconds(const GroupConfig& config) { return std::min(config.dist_timeout, 300.0); }

c10::intrusive_ptr<c10d::Store> open_store(const Place& place, const GroupConfig& config,
                                           bool may_serve) {
  check_host(place.master_addr);
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(place.master_port);
  options.isServer = may_serve && place.rank == 0 && !place.agent_store;
  options.waitWorkers = false;  // the process group calls the roll itself, and by name
  if (const auto inherited = number_of(kListenDescriptor); inherited && options.isServer)
    options.masterListenFd = static_cast<int>(*inherited);
  options.timeout =
      std::chrono::milliseconds(static_cast<std::int64_t>(join_seconds(config) * 1e3));
  try {
    return c10::make_intrusive<c10d::PrefixStore>(
        "llava/" + place.attempt + "/",
        c10::make_intrusive<c10d::TCPStore>(place.master_addr, options));
  } catch (const std::exception& error) {
    const std::string text = error.what();
    expect(text.find("EADDRINUSE") == std::string::npos, Fault::usage, "port ", place.master_port,
           " of this machine is in use, by another run perhaps; set MASTER_PORT to a free one");
    fail(Fault::peer, "rank ", place.rank, " of ", place.world_size, ": nobody answers at ",
         place.master_addr, ":", place.master_port, " within ", join_seconds(config),
         " s; is rank 0 running there, MASTER_ADDR and MASTER_PORT the same on all ranks, and the "
         "port open in the firewall?");
  }
}

std::string own_address(const Place& place) {
  if (place.one_machine()) return "127.0.0.1";
  const auto address = address_towards(place.master_addr);
  // The master sees itself by loopback; the others reach it by the way out.
  constexpr auto kElsewhere = "192.0.2.1";  // RFC 5737: no real host
  return address.rfind("127.", 0) == 0 ? address_towards(kElsewhere) : address;
}

}  // namespace llava::dist
