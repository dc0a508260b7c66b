// Starts the processes of a run on this machine and watches them to their end.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "dist/child_process.h"

namespace lk {

struct LaunchSettings {
  // How long the others may take to end by themselves once one has failed.
  int grace_seconds = 15;
};

// Starts `commands`, one a rank, with torchrun's variables in their environment (launch_place.h) and,
// in rank 0, the listening socket as kChildDescriptor. What rank 0 prints goes where this process's
// output does; what others print is shown if the run fails by them. `stop`, once set, is passed on as
// that signal. Returns when all have ended: 0, or the exit code of the failure; a process that a
// signal killed counts as 4. `say` hears who failed.
int launch(std::vector<ChildCommand> commands, const LaunchSettings& settings,
           const std::atomic<int>& stop, const std::function<void(const std::string&)>& say);

}  // namespace lk
