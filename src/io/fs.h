// Fs: every system call on files that can fail, behind one seam. The program uses the system's;
// tests put a double in its place that fails the n-th call, writes short, or lies. Nothing outside
// of src/io touches the file system (tools/check_style.sh looks): io/paths.h answers questions
// about paths, io/input_file.h reads, io/durable.h writes.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <vector>

namespace lk {

// Each function has the system call's meaning: -1 and errno on failure. They do not retry; callers
// do.
class Fs {
 public:
  virtual ~Fs() = default;
  virtual int open(const char* path, int flags, mode_t mode);
  virtual int close(int fd);
  virtual int fstat(int fd, struct stat* out);
  virtual int stat(const char* path, struct stat* out);
  virtual int lstat(const char* path, struct stat* out);
  // The names in `folder`, in any order, without "." and "..".
  virtual int list(const char* folder, std::vector<std::string>& names);
  // The absolute path without links, "." and "..".
  virtual int realpath(const char* path, std::string& resolved);
  virtual ssize_t read(int fd, void* dst, std::size_t bytes);
  virtual ssize_t pread(int fd, void* dst, std::size_t bytes, off_t offset);
  // A write over the file-size limit fails with EFBIG; the SIGXFSZ it raises never reaches the
  // process.
  virtual ssize_t write(int fd, const void* src, std::size_t bytes);
  virtual int ftruncate(int fd, off_t size);
  virtual int fsync(int fd);
  virtual int rename(const char* from, const char* to);
  // Renames, but fails with EEXIST if anything is called `to`.
  virtual int rename_new(const char* from, const char* to);
  virtual int unlink(const char* path);
  virtual int rmdir(const char* path);
  virtual int statvfs(const char* path, struct statvfs* out);
  virtual int mkdir(const char* path, mode_t mode);
  virtual int flock(int fd, int operation);
};

// The Fs in use.
Fs& fs();

// Puts `replacement` in use for as long as the object lives. For tests; not while other threads do
// I/O.
class FsOverride {
 public:
  explicit FsOverride(Fs& replacement);
  ~FsOverride();
  FsOverride(const FsOverride&) = delete;
  FsOverride& operator=(const FsOverride&) = delete;

 private:
  Fs* previous_;
};

// "PATH: what: No space left on device" for the errno value `error`.
std::string system_message(const std::string& path, const char* what, int error);

// Whether `error` is about the path that a user gave, and not about the machine.
bool blames_the_path(int error);

// Calls f() until it does not fail with EINTR.
template <class F>
auto retry_interrupted(F&& f) {
  decltype(f()) r;
  do r = f();
  while (r == -1 && errno == EINTR);
  return r;
}

// A file descriptor that closes itself (through the Fs that is in use then).
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { reset(); }
  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  int release() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }
  // Closes the file. Returns what close returned (0 if nothing was open).
  int reset();

 private:
  int fd_ = -1;
};

}  // namespace lk
