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
#include "io/paths.h"
#include "io/sha256.h"
#include "program.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

constexpr const char* kRank = "LORIKEET_RANK";  // of one of the processes that start() starts
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

// The number that the value of --processes stands for on `device`. Throws UsageError for what is no
// number, and for more than there are GPUs.
int process_count(const std::string& text, const std::string& device) {
  const int gpus = gpus_for(device);
  if (text == "all") {
    require(gpus > 0, "--processes all: one a GPU, and there is none to use; give a number");
    require(!device.starts_with("cuda:"), "--processes all: --device ", device, " is a single GPU");
    return gpus;
  }
  const int n = process_number(text, device, "all, or a number");
  require(gpus == 0 || n <= gpus, "--processes ", text, ": one a GPU, and this machine has ", gpus,
          " (--device cpu takes any number)");
  return n;
}

// Which of a run's processes this one is; nothing if it was started alone. Throws UsageError for an
// environment that can't be.
std::optional<LaunchPlace> launch_place() {
  const bool own = is_started_as(kRank);
  std::optional<LaunchPlace> place =
      find_launch_place([](const char* name) { return std::getenv(name); });
  if (!own || !place) return place;
  place->by.clear();
  if (place->rank == 0) place->listening = kChildDescriptor;
  return place;
}

}  // namespace

int process_number(const std::string& text, const std::string& device, const char* expected) {
  const auto n = whole_number_of(text);
  require(n && *n >= 1 && *n <= kMostProcesses, "--processes ", text, ": ", expected, " from 1 to ",
          kMostProcesses, " is expected");
  require(*n == 1 || !device.starts_with("cuda:"), "--processes ", text, ": --device ", device,
          " is a single GPU; cuda gives each process its own");
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

Json shared_settings(const CLI::App& app, const std::string& rows,
                     const std::vector<std::string>& own_flags) {
  std::vector<std::string> own = {"--config", "--device", "--processes", "--threads",
                                  "--peer-timeout"};
  own.insert(own.end(), own_flags.begin(), own_flags.end());
  Json settings = {{"rows", sha256_file(rows)}};
  for (const CLI::Option* option : app.get_options())
    if (option->count() > 0 && std::find(own.begin(), own.end(), option->get_name()) == own.end())
      settings[option->get_name()] = option->results();
  return settings;
}

void ProcessFlags::add(CLI::App& app, const std::string& help) {
  app.add_option("--processes", count, help);
  peer_timeout_flag = app.add_option("--peer-timeout", peer_timeout,
                                     "seconds after which a process that is silent is given up")
                          ->check(whole_number())
                          ->capture_default_str();
}

void ProcessFlags::check() const {
  require(peer_timeout >= 1 && peer_timeout <= 1'000'000, "--peer-timeout must be in 1 .. 1000000");
}

SharedCommand::SharedCommand(const ProcessFlags& flags, const std::string& device)
    : flags_(flags), device_(device), place_(launch_place()) {
  flags.check();
  if (!place_) {
    require(flags.count || flags.peer_timeout_flag->count() == 0,
            "--peer-timeout: is for several --processes");
    if (flags.count) count_ = process_count(*flags.count, device);
    return;
  }
  count_ = place_->size;
  require(place_->by.empty() || !flags.count || *flags.count == std::to_string(count_),
          "--processes ", flags.count.value_or(""), ": ", place_->by, " started ", count_);
}

int SharedCommand::start(int argc, const char* const* argv) const {
  std::vector<ChildCommand> commands = own_command_times(count_, device_, argc, argv);
  for (ChildCommand& c : commands) c.environment.insert(role_environment(kRank));
  LaunchSettings settings;
  settings.grace_seconds =
      static_cast<int>(std::min<std::int64_t>(settings.grace_seconds, flags_.peer_timeout));
  return launch(std::move(commands), settings, install_signal_handlers(), message);
}

void SharedCommand::check_readable(const std::string& flag, const std::string& path) const {
  require(count_ == 1 || !(path == "-" || is_pipe(path)), flag, " ", path,
          ": each process reads it, so several take no pipe");
}

World SharedCommand::open_world() const {
  if (!place_) return {};
  if (place_->rank != 0) be_silent();
  return {*place_, std::chrono::seconds(flags_.peer_timeout)};
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
