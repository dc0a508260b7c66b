#include "io/input_file.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

std::int64_t modified_ns(const struct stat& s) {
  return std::int64_t{s.st_mtim.tv_sec} * 1'000'000'000 + s.st_mtim.tv_nsec;
}

}  // namespace

InputFile::InputFile(const std::string& path, Between between) : path_(path) {
  if (path.find('\0') != std::string::npos)
    throw InputError(printable(path) + ": a path with a NUL byte");
  FileDescriptor fd = open();
  identity_ = identity(fd.get());
  if (between == Between::Open) fd_ = std::move(fd);
  // What a clone without git-lfs leaves in place of a large file; its format allows less than 1,024 bytes.
  constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/";
  if (size() < kPointer.size() || size() >= 1024) return;
  std::array<char, kPointer.size()> start;
  read(0, start.data(), start.size());
  if (std::string_view(start.data(), start.size()) == kPointer)
    throw InputError(path + ": a pointer of git-lfs, not the file: fetch it with git lfs pull");
}

FileDescriptor InputFile::open() const {
  // O_NONBLOCK: opening a FIFO must not wait for its writer. It means nothing to regular files.
  FileDescriptor fd(retry_interrupted(
      [&] { return fs().open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0); }));
  if (fd.is_open()) return fd;
  std::string message = system_message(path_, "cannot open", errno);
  if (blames_the_path(errno)) throw InputError(message);
  throw IoError(message);
}

InputFile::Identity InputFile::identity(int fd) const {
  struct stat s {};
  if (fs().fstat(fd, &s) != 0) throw IoError(system_message(path_, "cannot examine", errno));
  if (!S_ISREG(s.st_mode))
    throw InputError(path_ +
                     (S_ISDIR(s.st_mode) ? ": is a folder, not a file" : ": not a regular file"));
  return {s.st_dev, s.st_ino, static_cast<std::uint64_t>(s.st_size), modified_ns(s)};
}

void InputFile::read(std::uint64_t offset, void* dst, std::size_t bytes) const {
  if (bytes > size() || offset > size() - bytes)
    throw InputError(concat(path_, ": byte ", offset, ": ", bytes,
                            " bytes wanted, but the file ends at ", size()));
  const FileDescriptor opened = fd_.is_open() ? FileDescriptor() : open();
  const int fd = fd_.is_open() ? fd_.get() : opened.get();
  auto* to = static_cast<char*>(dst);
  std::size_t done = 0;
  while (done < bytes) {
    ssize_t n = retry_interrupted(
        [&] { return fs().pread(fd, to + done, bytes - done, static_cast<off_t>(offset + done)); });
    if (n < 0) throw IoError(system_message(path_, "cannot read", errno));
    if (n == 0)
      throw InputError(concat(path_, ": byte ", offset + done,
                              ": the file ends here: it was cut short while it was read"));
    done += static_cast<std::size_t>(n);
  }
  if (identity(fd) != identity_)
    throw InputError(path_ + ": the file was changed while it was read");
}

std::string read_file(const std::string& path, std::size_t max_bytes) {
  InputFile file(path);
  if (file.size() > max_bytes)
    throw InputError(
        concat(path, ": ", file.size(), " bytes; at most ", max_bytes, " are allowed"));
  std::string content(static_cast<std::size_t>(file.size()), '\0');
  file.read(0, content.data(), content.size());
  return content;
}

}  // namespace lk
