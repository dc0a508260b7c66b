// How much of the processor the process may use.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/traits.h"

namespace lk {

// Seconds of processor time a second that the process's control groups and theirs above them allow (a
// container's limit, a service's CPUQuota), or 0 without a limit. Reads what the kernel tells under
// `root`/proc/self/cgroup and `root`/sys/fs/cgroup, versions 1 and 2; what can't be read limits nothing.
// Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), scheduler/sched-bwc.rst.
double processor_quota(const std::string& root = "");

// Threads that are worth having with `processors` to run on and that quota, rounded up: what is over
// the quota is spent early in each of the kernel's periods, and then all threads pause.
std::int64_t useful_threads(std::int64_t processors, double quota);

// kCpuTraits on this processor: with AVX-512 BF16 or AMX it is faster in BF16.
DeviceTraits traits_of_this_processor();

}  // namespace lk
