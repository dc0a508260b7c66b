// The control groups that a process is in, as the kernel tells. Source: Linux,
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst.
#pragma once

#include <functional>
#include <string>

namespace lk::cpu {

// Calls f(folder, version) for the folder of the process's group of `controller` ("cpu", "memory") and
// those of the groups above it, in version 2 and in version 1. Inside a container the group's path can be
// that of the host: the mounted folder itself, which comes last, is then the container's. `root` stands
// before /proc and /sys in tests.
void visit_control_groups(const std::string& root, const std::string& controller,
                          const std::function<void(const std::string& folder, int version)>& f);

}  // namespace lk::cpu
