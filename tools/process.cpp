#include "process.h"

#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/processors.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

// ---- ends without main(). These functions allocate nothing: there may be nothing left.

// Set where memory ran out last: some exceptions that reach std::terminate() can't be looked at.
thread_local bool t_memory_ran_out = false;

[[noreturn]] void out_of_memory() {
  t_memory_ran_out = true;
  throw std::bad_alloc();
}

void print_error(const char* what) {
  for (const char* part :
       {const_cast<const char*>(program_invocation_short_name), ": error: ", what, "\n"})
    static_cast<void>(!::write(STDERR_FILENO, part, std::strlen(part)));
}

[[noreturn]] void end(const char* what, ExitCode code) {
  print_error(what);
  ::_exit(static_cast<int>(code));
}

[[noreturn]] void on_terminate() {
  if (std::current_exception()) {
    try {
      throw;
    } catch (const std::bad_alloc&) {
      t_memory_ran_out = true;
    } catch (const Error& e) {
      end(e.what(), e.code());
    } catch (const std::exception& e) {
      if (!t_memory_ran_out) end(e.what(), ExitCode::Internal);
    } catch (...) {
    }
  }
  if (t_memory_ran_out) end("out of host memory", ExitCode::OutOfMemory);
  end("ended by std::terminate", ExitCode::Internal);
}

std::atomic<bool> g_finished{false};

void on_exit() {
  if (!g_finished)
    end("a library found no memory or threads to go on with: free some, or set OMP_NUM_THREADS to "
        "fewer threads",
        ExitCode::OutOfMemory);
}

void install_handlers() {
  std::set_new_handler(out_of_memory);
  std::set_terminate(on_terminate);
  static_cast<void>(std::atexit(on_exit));
}

#if defined(__x86_64__)
// oneDNN does not look whether its small allocations worked, and reads through the null pointer.
struct Range {
  std::uintptr_t begin = 0, end = 0;
};
Range g_onednn;

int find_onednn(dl_phdr_info* library, std::size_t, void*) {
  if (std::strstr(library->dlpi_name, "libdnnl") == nullptr) return 0;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& part = library->dlpi_phdr[i];
    if (part.p_type == PT_LOAD && (part.p_flags & PF_X))
      g_onednn = {library->dlpi_addr + part.p_vaddr,
                  library->dlpi_addr + part.p_vaddr + part.p_memsz};
  }
  return 1;
}

void on_bad_read(int number, siginfo_t* info, void* context) {
  const auto at = static_cast<std::uintptr_t>(
      static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  const bool null = reinterpret_cast<std::uintptr_t>(info->si_addr) < 4096;
  if (null && at >= g_onednn.begin && at < g_onednn.end)
    end("oneDNN found no memory to go on with", ExitCode::OutOfMemory);
  std::signal(number, SIG_DFL);  // the same read again ends the program as it should
}

void watch_onednn() {
  ::dl_iterate_phdr(find_onednn, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_bad_read;
  action.sa_flags = SA_SIGINFO;
  if (g_onednn.end > 0) ::sigaction(SIGSEGV, &action, nullptr);
}
#else
void watch_onednn() {}
#endif

// The loader calls what stands here before the constructors of shared libraries, which allocate too.
using Function = void (*)();
[[gnu::section(".preinit_array"), gnu::used]] const Function g_before_libraries = install_handlers;

// ---- limits

// A standard descriptor that the caller closed would be the number of the next file opened, and what
// is printed would land there. Each is opened on /dev/null the wrong way round instead: it refuses
// reads or writes as a closed one does.
void keep_standard_descriptors() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF)
      static_cast<void>(::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY));
}

// The soft limit of open files is low for the sake of programs that call select().
void allow_open_files() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == files.rlim_max) return;
  files.rlim_cur = files.rlim_max;
  static_cast<void>(::setrlimit(RLIMIT_NOFILE, &files));  // the soft limit does for most models
}

constexpr std::size_t kStackBytes = std::size_t{8} << 20;  // what Linux gives unless told otherwise

void check_system(int error, const char* what) {
  if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

// Stacks of new threads follow the limit of this one's: a small one would end them with a signal.
void widen_stacks_of_threads() {
  pthread_attr_t attributes;
  check_system(::pthread_getattr_default_np(&attributes), "cannot examine threads");
  std::size_t bytes = 0;
  ::pthread_attr_getstacksize(&attributes, &bytes);
  int error = 0;
  if (bytes < kStackBytes) {
    error = ::pthread_attr_setstacksize(&attributes, kStackBytes);
    if (error == 0) error = ::pthread_setattr_default_np(&attributes);
  }
  ::pthread_attr_destroy(&attributes);
  check_system(error, "cannot give threads a stack");
}

bool this_stack_is_small() {
  rlimit stack{};
  return ::getrlimit(RLIMIT_STACK, &stack) == 0 && stack.rlim_cur != RLIM_INFINITY &&
         stack.rlim_cur < kStackBytes / 2;
}

// OpenMP makes its threads when they are first wanted, and ends the program if it can't.
void check_threads() {
  // Loads what threads need to end. Later, without memory for it, glibc would abort.
  void* frame = nullptr;
  ::backtrace(&frame, 1);
  const auto wanted = static_cast<std::size_t>(std::max(1, omp_get_max_threads()));
  std::vector<std::thread> made;
  std::atomic<bool> over{false};
  bool all = true;
  made.reserve(wanted);
  try {
    while (made.size() + 1 < wanted) made.emplace_back([&over] { over.wait(false); });
  } catch (const std::system_error&) {
    all = false;
  } catch (const std::bad_alloc&) {
    all = false;
  }
  over = true;
  over.notify_all();
  for (std::thread& thread : made) thread.join();
  if (!all)
    throw OutOfMemoryError(concat("only ", made.size() + 1, " of ", wanted,
                                  " threads can be made: set OMP_NUM_THREADS=", made.size() + 1,
                                  " or fewer (--threads), or raise the limit (ulimit -u, -v)"));
}

}  // namespace

// Turns of its waiting loop that a thread makes before it sleeps: see docs/performance.md. OpenMP's own
// 300,000 keep a core from other programs, and then from the very thread that is waited for.
constexpr const char* kSpinCount = "1000";

void set_openmp(char** argv, std::int64_t threads) {
  bool changed = false;
  auto set = [&](const char* name, const std::string& value) {
    const char* now = std::getenv(name);
    if (!now || value != now) changed = ::setenv(name, value.c_str(), 1) == 0 || changed;
  };
  if (!std::getenv("OMP_WAIT_POLICY") && !std::getenv("GOMP_SPINCOUNT"))
    set("GOMP_SPINCOUNT", kSpinCount);
  if (threads > 0) {
    set("OMP_NUM_THREADS", std::to_string(threads));
  } else if (!std::getenv("OMP_NUM_THREADS")) {  // OpenMP itself counts what affinity allows
    const std::int64_t all = omp_get_num_procs(), useful = useful_threads(all, processor_quota());
    if (useful < all) set("OMP_NUM_THREADS", std::to_string(useful));
  }
  if (!changed) return;
  char path[PATH_MAX];  // not /proc/self/exe: the process would be called "exe"
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path - 1);
  if (n <= 0) return;
  path[n] = 0;
  ::execv(path, argv);
}

int finish(int status) {
  g_finished = true;
  return status;
}

int with_resources(const std::function<int()>& body) {
  keep_standard_descriptors();
  allow_open_files();
  watch_onednn();
  widen_stacks_of_threads();
  static_cast<void>(std::atexit(on_exit));  // once more, to be called before objects are destroyed
  check_threads();
  if (!this_stack_is_small()) return body();
  int status = 0;
  std::exception_ptr failure;
  std::thread roomy([&] {
    try {
      status = body();
    } catch (...) {
      failure = std::current_exception();
    }
  });
  roomy.join();
  if (failure) std::rethrow_exception(failure);
  return status;
}

}  // namespace lk::program
