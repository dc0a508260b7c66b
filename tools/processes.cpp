#include "processes.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <optional>

#include "cpu/processors.h"
#include "cuda/open_device.h"
#include "dist/launcher.h"
#include "program.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

constexpr const char* kRank = "LORIKEET_RANK";  // of one of launch_own()'s processes
constexpr const char* kVisible = "CUDA_VISIBLE_DEVICES";

std::optional<int> whole_number_of(const std::string& text) {
  int n = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, n);
  return error == std::errc() && rest == end ? std::optional(n) : std::nullopt;
}

// The number of GPUs to share out; 0 if the processes compute on the CPU.
int gpus_for(const std::string& device) { return device == "cpu" ? 0 : n_gpus(); }

std::string this_program() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path - 1);
  require(n > 0, "--processes: /proc/self/exe can't be read, which says what to start");
  return {path, static_cast<std::size_t>(n)};
}

// What CUDA_VISIBLE_DEVICES has to be for the i-th of the GPUs that are visible now.
std::string visible_gpu(int i) {
  const char* now = std::getenv(kVisible);
  if (!now) return std::to_string(i);
  std::string list = now;
  for (int k = 0; k < i; ++k) list.erase(0, std::min(list.find(','), list.size() - 1) + 1);
  return list.substr(0, list.find(','));
}

}  // namespace

int process_count(const std::string& text, const std::string& device) {
  const int gpus = gpus_for(device);
  if (text == "all") {
    require(gpus > 0, "--processes all: one a GPU, and there is none to use; give a number");
    require(!device.starts_with("cuda:"), "--processes all: --device ", device, " is a single GPU");
    return gpus;
  }
  const auto n = whole_number_of(text);
  require(n && *n >= 1 && *n <= kMostProcesses, "--processes ", text,
          ": all, or a number from 1 to ", kMostProcesses, ", is expected");
  require(*n == 1 || !device.starts_with("cuda:"), "--processes ", text, ": --device ", device,
          " is a single GPU; cuda gives each process its own");
  require(gpus == 0 || *n <= gpus, "--processes ", text, ": one a GPU, and this machine has ", gpus,
          " (--device cpu takes any number)");
  return *n;
}

std::vector<ChildCommand> own_command_times(int count, const std::string& device, int argc,
                                            const char* const* argv) {
  ChildCommand start{{argv, argv + argc}, {}};
  start.command[0] = this_program();
  const std::int64_t threads = useful_threads(omp_get_num_procs(), processor_quota());
  // What a program itself sets where nobody says how many; --threads is read again by each.
  const char* now = std::getenv("OMP_NUM_THREADS");
  if (!now || std::to_string(threads) == now)
    start.environment["OMP_NUM_THREADS"] =
        std::to_string(std::max<std::int64_t>(1, threads / count));
  std::vector<ChildCommand> all(static_cast<std::size_t>(count), start);
  if (gpus_for(device) > 0 && !device.starts_with("cuda:"))
    for (int i = 0; i < count; ++i)
      all[static_cast<std::size_t>(i)].environment[kVisible] = visible_gpu(i);
  return all;
}

std::optional<LaunchPlace> launch_place() {
  const bool own = is_started_as(kRank);
  std::optional<LaunchPlace> place =
      find_launch_place([](const char* name) { return std::getenv(name); });
  if (!own || !place) return place;
  place->by.clear();
  if (place->rank == 0) place->listening = kChildDescriptor;
  return place;
}

int launch_own(int count, const std::string& device, std::int64_t peer_timeout, int argc,
               const char* const* argv) {
  std::vector<ChildCommand> commands = own_command_times(count, device, argc, argv);
  for (ChildCommand& c : commands) c.environment.insert(role_environment(kRank));
  LaunchSettings settings;
  settings.grace_seconds = std::min(settings.grace_seconds, static_cast<int>(peer_timeout));
  return launch(std::move(commands), settings, install_signal_handlers(), message);
}

World open_world(const std::optional<LaunchPlace>& place, std::int64_t peer_timeout) {
  return place ? World(*place, std::chrono::seconds(peer_timeout)) : World();
}

bool is_started_as(const char* role) {
  const char* value = std::getenv(role);
  if (!value) return false;
  const auto parent = whole_number_of(value);
  require(parent.has_value(), role, " ", value, ": is set by this program for its own children");
  end_with_parent(*parent);
  return true;
}

std::pair<std::string, std::string> role_environment(const char* role) {
  return {role, std::to_string(::getpid())};
}

}  // namespace lk::program
