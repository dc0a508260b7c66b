// How the processes of a run find each other: all call rank 0, which tells each where the others listen.
#pragma once

#include <chrono>
#include <vector>

#include "dist/launch_place.h"
#include "io/fs.h"

namespace lk {

// A connection to each of the others, by rank. Throws IoError naming who did not come within
// `timeout`; UsageError if one is of another run or another version.
std::vector<FileDescriptor> meet(const LaunchPlace& place, std::chrono::seconds timeout);

}  // namespace lk
