#include "dist/launch_place.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "tensor/error.h"

namespace lk {
namespace {

constexpr int kMostProcesses = 1 << 16, kFirstPort = 20000, kPorts = 20000;

struct Names {
  const char *by, *rank, *size, *local_rank, *local_size, *job;
};
constexpr Names kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"},
    {"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_ID"},
    {"SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
     "SLURM_JOB_ID"},
};

class Reader {
 public:
  Reader(const Environment& environment, const char* by) : environment_(environment), by_(by) {}

  int number(const char* name, int least, int most, std::optional<int> otherwise = {}) const {
    const char* text = environment_(name);
    if (!text && otherwise) return *otherwise;
    require(text, name, " is not set, though ", by_, " says that this is one process of several");
    int value = 0;
    const char* end = text + std::strlen(text);
    const auto [rest, error] = std::from_chars(text, end, value);
    require(error == std::errc() && rest == end && value >= least && value <= most, name, "=", text,
            ": a number from ", least, " to ", most, " is expected");
    return value;
  }

 private:
  const Environment& environment_;
  const char* by_;
};

// The number of processes on this machine: "4", or SLURM's "4(x2),3" for four on each of two, and so
// on, whose first is the most. `size`, which is never too few, where nothing is said.
int local_size(const char* text, int size) {
  int n = size;
  if (text) std::from_chars(text, text + std::strlen(text), n);
  return std::clamp(n, 1, size);
}

// A port that all processes of a job come to by themselves.
int port_of(const char* job) {
  std::uint32_t hash = 2166136261u;  // FNV-1a
  for (; job && *job; ++job) hash = (hash ^ static_cast<unsigned char>(*job)) * 16777619u;
  return kFirstPort + static_cast<int>(hash % kPorts);
}

// Rank 0's address and port.
void find_address(LaunchPlace& place, const Names& names, const Reader& reader,
                  const Environment& environment) {
  const char* address = environment("MASTER_ADDR");
  const char* tasks = environment(names.local_size);  // SLURM's is "4" on one node, "4(x2)" on two
  const bool one_machine = tasks && std::to_string(place.size) == tasks;
  require(address || one_machine,
          "MASTER_ADDR is not set: the host of rank 0, where the processes ", "that ", names.by,
          " started meet");
  if (address) place.address = address;
  const bool has_port = environment("MASTER_PORT") || std::strcmp(names.by, "torchrun") == 0;
  place.port = has_port ? reader.number("MASTER_PORT", 1, 65535) : port_of(environment(names.job));
  // torchrun itself listens on the port that it names.
  const char* own_store = environment("TORCHELASTIC_USE_AGENT_STORE");
  if (own_store && std::strcmp(own_store, "True") == 0)
    place.port = place.port < 65535 ? place.port + 1 : place.port - 1;
}

}  // namespace

std::optional<LaunchPlace> find_launch_place(const Environment& environment) {
  for (const Names& names : kLaunchers) {
    if (!environment(names.rank) || !environment(names.size)) continue;
    const Reader reader(environment, names.by);
    LaunchPlace place;
    place.by = names.by;
    place.size = reader.number(names.size, 1, kMostProcesses);
    place.rank = reader.number(names.rank, 0, place.size - 1);
    if (place.size == 1) continue;
    place.local_rank = reader.number(names.local_rank, 0, place.size - 1, place.rank);
    place.local_size = local_size(environment(names.local_size), place.size);
    find_address(place, names, reader, environment);
    return place;
  }
  // A rank without a size may be alone, as SLURM's batch script is; a size without a rank is not.
  for (const Names& names : kLaunchers) {
    const char* text = environment(names.size);
    const std::string_view size = text ? text : "";
    require(size.empty() || size == "1" || environment(names.rank), names.size, "=", size,
            " says that this is one process of several, and ", names.rank,
            " does not say which: start it with torchrun, mpirun or srun, or unset ", names.size);
  }
  return std::nullopt;
}

}  // namespace lk
