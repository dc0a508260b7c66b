// How many threads a process gets that may not use the whole processor.
#include "cpu/processors.h"

#include <filesystem>
#include <fstream>

#include "harness.h"
#include "scratch_folder.h"

using namespace lk;

namespace {

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("the quota is the least of the group's and those above it, in both versions") {
  const test::ScratchFolder scratch;
  auto quota = [&](const std::string& name, const std::string& groups,
                   const std::vector<std::pair<std::string, std::string>>& files) {
    const std::string root = scratch.file(name);
    write(root + "/proc/self/cgroup", groups);
    for (const auto& [path, text] : files) write(root + "/sys/fs/cgroup" + path, text);
    return processor_quota(root);
  };
  CHECK(quota("none", "0::/\n", {}) == 0);
  CHECK(quota("max", "0::/\n", {{"/cpu.max", "max 100000\n"}}) == 0);
  CHECK(quota("container", "0::/\n", {{"/cpu.max", "250000 100000\n"}}) == 2.5);
  CHECK(quota("nested", "0::/system.slice/run.service\n",
              {{"/system.slice/cpu.max", "300000 100000\n"},
               {"/system.slice/run.service/cpu.max", "max 100000\n"}}) == 3);
  CHECK(quota("inner", "0::/a/b\n",
              {{"/a/cpu.max", "300000 100000\n"}, {"/a/b/cpu.max", "50000 100000\n"}}) == 0.5);
  CHECK(quota("first", "4:memory:/x\n2:cpu,cpuacct:/docker/1\n0::/\n",
              {{"/cpu,cpuacct/cpu.cfs_quota_us", "400000\n"},
               {"/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}}) == 4);
  CHECK(quota("unlimited", "2:cpu:/a\n",
              {{"/cpu/a/cpu.cfs_quota_us", "-1\n"}, {"/cpu/a/cpu.cfs_period_us", "100000\n"}}) ==
        0);
  CHECK(quota("odd", "what is this\n:::\n0::relative\n0::/\n", {{"/cpu.max", "x 0\n"}}) == 0);
  CHECK(processor_quota(scratch.file("no such folder")) == 0);
}

TEST_CASE("threads are the processors, or the quota rounded up, and at least one") {
  CHECK(useful_threads(8, 0) == 8);
  CHECK(useful_threads(8, 2.5) == 3);
  CHECK(useful_threads(8, 3) == 3);
  CHECK(useful_threads(8, 0.2) == 1);
  CHECK(useful_threads(2, 16) == 2);
}
