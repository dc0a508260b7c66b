#include "io/fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <new>
#include <string_view>
#include <system_error>

namespace lk {

namespace {

// Holds SIGXFSZ back from this thread, and swallows it if a write raised it: a library may not
// change the process's signal handlers, and the default action would kill the run instead of
// failing the write.
class WithoutSigxfsz {
 public:
  WithoutSigxfsz() {
    sigemptyset(&xfsz_);
    sigaddset(&xfsz_, SIGXFSZ);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGXFSZ) == 1;
    pthread_sigmask(SIG_BLOCK, &xfsz_, &previous_);
  }
  ~WithoutSigxfsz() {
    int saved = errno;
    if (!was_pending_) {
      timespec now{};
      while (sigtimedwait(&xfsz_, nullptr, &now) == -1 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
    errno = saved;
  }
  WithoutSigxfsz(const WithoutSigxfsz&) = delete;
  WithoutSigxfsz& operator=(const WithoutSigxfsz&) = delete;

 private:
  sigset_t xfsz_, previous_;
  bool was_pending_ = false;
};

std::atomic<Fs*> replacement_fs{nullptr};

}  // namespace

int Fs::open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }
int Fs::close(int fd) { return ::close(fd); }
int Fs::fstat(int fd, struct stat* out) { return ::fstat(fd, out); }
int Fs::stat(const char* path, struct stat* out) { return ::stat(path, out); }
int Fs::lstat(const char* path, struct stat* out) { return ::lstat(path, out); }
int Fs::list(const char* folder, std::vector<std::string>& names) {
  names.clear();
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder), ::closedir);
  if (open == nullptr && errno == ENOMEM) throw std::bad_alloc();
  if (open == nullptr) return -1;
  for (;;) {
    errno = 0;  // readdir() returns null for the end and for an error
    const dirent* entry = ::readdir(open.get());
    if (entry == nullptr) return errno == 0 ? 0 : -1;
    if (const std::string_view name = entry->d_name; name != "." && name != "..")
      names.emplace_back(name);
  }
}
int Fs::realpath(const char* path, std::string& resolved) {
  const std::unique_ptr<char, void (*)(void*)> text(::realpath(path, nullptr), ::free);
  if (text == nullptr && errno == ENOMEM) throw std::bad_alloc();
  if (text == nullptr) return -1;
  resolved = text.get();
  return 0;
}
ssize_t Fs::read(int fd, void* dst, std::size_t bytes) { return ::read(fd, dst, bytes); }
ssize_t Fs::pread(int fd, void* dst, std::size_t bytes, off_t offset) {
  return ::pread(fd, dst, bytes, offset);
}
ssize_t Fs::write(int fd, const void* src, std::size_t bytes) {
  WithoutSigxfsz guard;
  return ::write(fd, src, bytes);
}
int Fs::ftruncate(int fd, off_t size) { return ::ftruncate(fd, size); }
int Fs::fsync(int fd) { return ::fsync(fd); }
int Fs::rename(const char* from, const char* to) { return ::rename(from, to); }
int Fs::rename_new(const char* from, const char* to) {
  if (::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  // The file system lacks the flag: looks first, though another process may come between.
  struct stat there {};
  if (::lstat(to, &there) == 0) {
    errno = EEXIST;
    return -1;
  }
  return errno == ENOENT ? ::rename(from, to) : -1;
}
int Fs::unlink(const char* path) { return ::unlink(path); }
int Fs::rmdir(const char* path) { return ::rmdir(path); }
int Fs::statvfs(const char* path, struct statvfs* out) { return ::statvfs(path, out); }
int Fs::mkdir(const char* path, mode_t mode) { return ::mkdir(path, mode); }
int Fs::flock(int fd, int operation) { return ::flock(fd, operation); }

Fs& fs() {
  static Fs system;
  Fs* replacement = replacement_fs.load(std::memory_order_acquire);
  return replacement != nullptr ? *replacement : system;
}

FsOverride::FsOverride(Fs& replacement) : previous_(replacement_fs.exchange(&replacement)) {}
FsOverride::~FsOverride() { replacement_fs.store(previous_); }

std::string system_message(const std::string& path, const char* what, int error) {
  return path + ": " + what + ": " + std::generic_category().message(error);
}

bool blames_the_path(int error) {
  return error == ENOENT || error == ENOTDIR || error == EACCES || error == EPERM ||
         error == ELOOP || error == ENAMETOOLONG || error == ENXIO;
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int FileDescriptor::reset() {
  int fd = release();
  return fd >= 0 ? fs().close(fd) : 0;
}

}  // namespace lk
