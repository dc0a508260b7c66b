// A library to be preloaded (LD_PRELOAD) that makes allocations fail.
//
//   LK_FAIL_AT=N      the N-th allocation of the process fails (counted from 1, over all threads)
//   LK_FAIL_ON=1      and so does each one after it
//   LK_FAIL_COUNT=F   at the end, the number of allocations is written to the file F
//
// Real blocks come from glibc's own functions behind malloc and its kin. Counting starts with main(): before it run
// constructors of libraries, which nobody can catch (CUDA's runtime registers its kernels there and crashes).
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t n, std::size_t bytes);
void* __libc_realloc(void* block, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);
}

namespace {

using Main = int (*)(int, char**, char**);

std::atomic<long> g_count{0};
long g_fail_at = 0;  // 0: never
bool g_fail_on = false;
Main g_main = nullptr;

int counted_main(int argc, char** argv, char** environment) {
  const char* at = std::getenv("LK_FAIL_AT");
  g_fail_on = std::getenv("LK_FAIL_ON") != nullptr;
  g_count = 0;
  g_fail_at = at ? std::atol(at) : 0;
  return g_main(argc, argv, environment);
}

__attribute__((destructor)) void end() {
  const char* path = std::getenv("LK_FAIL_COUNT");
  const long count = g_count;
  g_fail_at = 0;
  if (std::FILE* file = path ? std::fopen(path, "w") : nullptr) {
    std::fprintf(file, "%ld\n", count);
    std::fclose(file);
  }
}

bool fails() {
  const long n = ++g_count;
  if (g_fail_at == 0 || n < g_fail_at || (n > g_fail_at && !g_fail_on)) return false;
  errno = ENOMEM;
  return true;
}

}  // namespace

extern "C" {
// glibc's entry into a program, which calls main() after all constructors.
int __libc_start_main(Main main, int argc, char** argv, void (*init)(), void (*fini)(),
                      void (*rtld_fini)(), void* stack_end) {
  using Start = decltype(&__libc_start_main);
  g_main = main;
  const auto start = reinterpret_cast<Start>(::dlsym(RTLD_NEXT, "__libc_start_main"));
  return start(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

void* malloc(std::size_t bytes) noexcept { return fails() ? nullptr : __libc_malloc(bytes); }
void* calloc(std::size_t n, std::size_t bytes) noexcept {
  return fails() ? nullptr : __libc_calloc(n, bytes);
}
void* realloc(void* block, std::size_t bytes) noexcept {
  return fails() ? nullptr : __libc_realloc(block, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  return fails() ? nullptr : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  return memalign(alignment, bytes);
}
int posix_memalign(void** block, std::size_t alignment, std::size_t bytes) noexcept {
  *block = memalign(alignment, bytes);
  return *block ? 0 : ENOMEM;
}
}
