#include "run/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

namespace lk {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// Version 2: "max 100000" or "<microseconds> <of>".
double read_cpu_max(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// Version 1: a quota of -1 is none.
double read_cfs_quota(const std::string& folder) {
  std::ifstream first(folder + "/cpu.cfs_quota_us"), second(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return first >> quota && second >> period && quota > 0 && period > 0 ? quota / period
                                                                       : kUnlimited;
}

// The least that a group and those above it allow. Inside a container the group's path is that of the
// host, or "/": the mounted folder itself is then the container's.
template <class Read>
double least(const std::string& mounted, std::string group, const Read& read) {
  double quota = read(mounted);
  while (group.size() > 1) {
    quota = std::min(quota, read(mounted + group));
    group.resize(group.rfind('/'));
  }
  return quota;
}

}  // namespace

double processor_quota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  const std::string mounted = root + "/sys/fs/cgroup";
  double quota = kUnlimited;
  for (std::string line; std::getline(groups, line);) {  // id:controllers:/path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string group = line.substr(second + 1);
    if (group.empty() || group[0] != '/') continue;
    if (second == first + 1) quota = std::min(quota, least(mounted, group, read_cpu_max));
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    for (std::string name; std::getline(controllers, name, ',');)
      if (name == "cpu")
        for (const char* folder : {"/cpu", "/cpu,cpuacct"})
          quota = std::min(quota, least(mounted + folder, group, read_cfs_quota));
  }
  return quota == kUnlimited ? 0 : quota;
}

std::int64_t useful_threads(std::int64_t processors, double quota) {
  if (!(quota > 0) || quota >= static_cast<double>(processors)) return processors;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(quota - 1e-6)));
}

}  // namespace lk
