// --processes: how many processes a command is worth, and how each of them is started.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/child_process.h"
#include "dist/launch_place.h"
#include "dist/world.h"
#include "io/json.h"

namespace lk::program {

inline constexpr int kMostProcesses = 1024;

// The number of processes that `text`, the value of --processes, says for `device`. Throws UsageError for
// one that is not `expected` (from 1 to kMostProcesses), and for several on a single GPU.
int process_number(const std::string& text, const std::string& device,
                   const char* expected = "a number");

// This program's own command line, `count` times: with a GPU each on a machine that has some, unless
// `device` is the CPU, and with a share of the processor's threads each unless the user says how many.
std::vector<ChildCommand> own_command_times(int count, const std::string& device, int argc,
                                            const char* const* argv);

// What a command was given, by flag, and the content of the file in which it finds its rows: the
// processes that share its results must have been given the same. Of `own_flags`, of --device and of
// what is said of processes and threads each may have its own.
Json shared_settings(const CLI::App& app, const std::string& rows,
                     const std::vector<std::string>& own_flags = {});

// --processes and --peer-timeout.
struct ProcessFlags {
  std::optional<std::string> count;
  std::int64_t peer_timeout = 600;  // seconds
  CLI::Option* peer_timeout_flag = nullptr;

  // `help`: what --processes shares. This must outlive the parsing.
  void add(CLI::App& app, const std::string& help);
  void check() const;  // throws UsageError
};

// A command that may be the work of several processes: those that it starts itself, as --processes
// says, or those that a launcher has started, of which this is one.
class SharedCommand {
 public:
  // Throws UsageError for flags or an environment that can't be, or that contradict each other.
  SharedCommand(const ProcessFlags& flags, const std::string& device);

  int count() const { return count_; }
  // Whether the work is done as processes share it, if only by one.
  bool shared() const { return place_ || flags_.count; }
  // Whether someone else started this process as one of several.
  bool started_by_another() const { return place_.has_value(); }
  // Whether this process is only to start those that work, by start().
  bool starts_others() const { return !place_ && count_ > 1; }
  // Starts them with this command line and returns the exit code of all. Once one has failed the others
  // are given some seconds to end.
  int start(int argc, const char* const* argv) const;
  // Throws UsageError if each of several processes would read `path`, the value of `flag`, from a pipe.
  void check_readable(const std::string& flag, const std::string& path) const;
  // The World of the processes, or of this one alone. From now on only rank 0 prints anything but
  // errors.
  World open_world() const;

 private:
  ProcessFlags flags_;
  std::string device_;
  std::optional<LaunchPlace> place_;
  int count_ = 1;
};

// For main(): whether `role` is what this process was started for, by one that gave the role's
// environment to its children. It then ends with that one.
bool is_started_as(const char* role);
// The environment of a child with that role.
std::pair<std::string, std::string> role_environment(const char* role);

}  // namespace lk::program
