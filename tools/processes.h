// --processes: how many processes a command is worth, and how each of them is started.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/child_process.h"
#include "dist/launch_place.h"
#include "dist/world.h"

namespace lk::program {

inline constexpr int kMostProcesses = 1024;

// The number that the value of --processes stands for on `device`. Throws UsageError for what is no
// number, and for more than there are GPUs.
int process_count(const std::string& text, const std::string& device);

// This program's own command line, `count` times: with a GPU each on a machine that has some, unless
// `device` is the CPU, and with a share of the processor's threads each unless the user says how many.
std::vector<ChildCommand> own_command_times(int count, const std::string& device, int argc,
                                            const char* const* argv);

// Which of a run's processes this one is; nothing if it was started alone. Throws UsageError for an
// environment that can't be.
std::optional<LaunchPlace> launch_place();
// Starts `count` processes with this command line, which find their places in launch_place(), and
// returns the exit code of all. Once one has failed the others are given some seconds to end, at most
// `peer_timeout`.
int launch_own(int count, const std::string& device, std::int64_t peer_timeout, int argc,
               const char* const* argv);

// The World of launch_place(), or of this process alone.
World open_world(const std::optional<LaunchPlace>& place, std::int64_t peer_timeout);

// For main(): whether `role` is what this process was started for, by one that gave the role's
// environment to its children. It then ends with that one.
bool is_started_as(const char* role);
// The environment of a child with that role.
std::pair<std::string, std::string> role_environment(const char* role);

}  // namespace lk::program
