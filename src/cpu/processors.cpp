#include "cpu/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

#include "cpu/control_groups.h"
#include "cpu/fast/onednn_linear.h"

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

}  // namespace

double processor_quota(const std::string& root) {
  double quota = kUnlimited;
  cpu::visit_control_groups(root, "cpu", [&](const std::string& folder, int version) {
    quota = std::min(quota, version == 2 ? read_cpu_max(folder) : read_cfs_quota(folder));
  });
  return quota == kUnlimited ? 0 : quota;
}

std::int64_t useful_threads(std::int64_t processors, double quota) {
  if (!(quota > 0) || quota >= static_cast<double>(processors)) return processors;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(quota - 1e-6)));
}

DeviceTraits traits_of_this_processor() {
  DeviceTraits traits = kCpuTraits;
  traits.faster_in_bf16 = cpu::prefers_onednn(DType::BF16);
  return traits;
}

}  // namespace lk
