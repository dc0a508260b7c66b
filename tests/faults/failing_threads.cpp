// A library to be preloaded (LD_PRELOAD) with which the N-th thread of a process, LK_FAIL_AT=N, and all
// threads after it can't be made: pthread_create() returns EAGAIN, as at a limit of processes.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*start)(void*), void* argument) noexcept {
  static std::atomic<long> count{0};
  const char* at = std::getenv("LK_FAIL_AT");
  if (++count >= (at ? std::atol(at) : 0) && at) return EAGAIN;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(::dlsym(RTLD_NEXT, "pthread_create"));
  return create(thread, attributes, start, argument);
}
