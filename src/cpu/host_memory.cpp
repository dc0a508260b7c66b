#include "cpu/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "cpu/control_groups.h"

namespace lk::cpu {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Linux promises more memory than it has and kills who uses it, so larger blocks are checked
// against what is left first.
constexpr std::size_t kLookFirst = std::size_t{16} << 20;
constexpr std::int64_t kNoLimit = INT64_MAX;

// The first whitespace-separated number after `key` in a file, or `fallback`.
std::int64_t number_after(const std::string& path, const std::string& key, std::int64_t fallback) {
  std::ifstream in(path);
  std::string word;
  while (in >> word) {
    std::int64_t value = 0;
    if (word == key && in >> value) return value;
  }
  return fallback;
}
// The number that a file consists of; `fallback` for "max", a missing file or nonsense.
std::int64_t number_in(const std::string& path, std::int64_t fallback) {
  std::ifstream in(path);
  std::int64_t value = 0;
  return in >> value ? value : fallback;
}

// Bytes that one control group leaves. Its page cache counts as used but can be reclaimed: add it
// back.
std::int64_t left_in_group(const std::string& folder, const char* limit_file,
                           const char* used_file) {
  std::int64_t limit = number_in(folder + limit_file, kNoLimit);
  if (limit == kNoLimit) return kNoLimit;
  std::int64_t used = number_in(folder + used_file, 0);
  std::int64_t cache = number_after(folder + "/memory.stat", "inactive_file", 0);
  return std::max<std::int64_t>(0, limit - used + std::min(cache, used));
}

// The least that this process's control groups and those above them leave.
std::int64_t left_in_control_groups() {
  std::int64_t left = kNoLimit;
  visit_control_groups("", "memory", [&](const std::string& folder, int version) {
    left = std::min(left, version == 2 ? left_in_group(folder, "/memory.max", "/memory.current")
                                       : left_in_group(folder, "/memory.limit_in_bytes",
                                                       "/memory.usage_in_bytes"));
  });
  return left;
}

std::size_t whole_pages(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

}  // namespace

void* allocate_host(std::size_t bytes) {
  if (bytes >= kLookFirst && static_cast<std::int64_t>(bytes) > free_host_memory()) return nullptr;
  if (bytes < kHugePage) {
    void* block = nullptr;
    return posix_memalign(&block, kAlignment, bytes) == 0 ? block : nullptr;
  }
  // A mapping of its own: the C library may keep what it is given back, between blocks that are in use.
  const std::size_t size = whole_pages(bytes);
  void* const all =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  auto* const first = static_cast<char*>(all);
  const std::size_t before =
      (kHugePage - reinterpret_cast<std::uintptr_t>(all) % kHugePage) % kHugePage;
  if (before > 0) munmap(first, before);
  if (before < kHugePage) munmap(first + before + size, kHugePage - before);
  // Only advice: without huge pages everything works, with more TLB misses.
  madvise(first + before, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return first + before;
}

void release_host(void* block, std::size_t bytes) {
  if (bytes < kHugePage)
    std::free(block);
  else
    munmap(block, whole_pages(bytes));
}

std::int64_t free_host_memory() {
  std::int64_t available = number_after("/proc/meminfo", "MemAvailable:", kNoLimit >> 10) << 10;
  return std::min(available, left_in_control_groups());
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0 && line.find(':') + 2 < line.size())
      return line.substr(line.find(':') + 2);
  return "unknown processor";
}

}  // namespace lk::cpu
