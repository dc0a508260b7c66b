#include "io/durable.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <vector>

#include "io/input_file.h"
#include "io/temporary.h"
#include "tensor/error.h"

namespace lk {

namespace {

// Writes all of `data`, however short the single writes are. Returns 0 or an errno value; `done` is
// what was written.
int write_all(int fd, const char* data, std::size_t bytes, std::size_t& done) {
  for (done = 0; done < bytes;) {
    ssize_t n = retry_interrupted([&] { return fs().write(fd, data + done, bytes - done); });
    if (n < 0) return errno;
    if (n == 0) return ENOSPC;  // else a file that takes nothing would loop for ever
    done += static_cast<std::size_t>(n);
  }
  return 0;
}

}  // namespace

int fsync_folder(const std::string& folder) {
  FileDescriptor fd(retry_interrupted([&] {
    return fs().open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  }));
  if (!fd.is_open()) return errno;
  int r = retry_interrupted([&] { return fs().fsync(fd.get()); });
  // EINVAL means that the file system has no such operation; a program can do nothing more.
  return r == 0 || errno == EINVAL ? 0 : errno;
}

DurableFile::DurableFile(const std::string& path) : path_(path) {
  for (int tries = 0; tries < 1000; ++tries) {
    temp_ = unique_temporary(path);
    const int fd = retry_interrupted(
        [&] { return fs().open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
    // A killed process with our number may have left this name: a later one is free.
    if (fd < 0 && errno == EEXIST) continue;
    if (fd < 0) {
      temp_.clear();
      throw IoError(system_message(path, "cannot create a temporary file beside it", errno));
    }
    fd_ = FileDescriptor(fd);
    try {
      if (hold_temporary(temp_, true, lock_) == Hold::Held) return;
    } catch (const IoError&) {
      fs().unlink(temp_.c_str());
      throw;
    }
    fd_.reset();  // somebody took it for abandoned before it was locked
  }
  temp_.clear();
  throw IoError(path + ": cannot create a temporary file beside it: every name is taken");
}

DurableFile::~DurableFile() {
  fd_.reset();
  if (!temp_.empty()) fs().unlink(temp_.c_str());
}

void DurableFile::append(const void* data, std::size_t bytes) {
  std::size_t done = 0;
  if (int error = write_all(fd_.get(), static_cast<const char*>(data), bytes, done); error != 0)
    throw IoError(
        system_message(path_, "cannot write (the old file, if any, is untouched)", error));
  hash_.update(data, bytes);
  size_ += bytes;
}

void DurableFile::commit() {
  // After a failed fsync the kernel may drop the pages and report success the next time, so there
  // is no second try: the file is given up.
  if (retry_interrupted([&] { return fs().fsync(fd_.get()); }) != 0)
    throw IoError(system_message(
        path_, "cannot write to the disk (fsync; the old file is untouched)", errno));
  // Network file systems report a full disk here at the latest. Linux closes the file even on
  // EINTR.
  if (fd_.reset() != 0 && errno != EINTR)
    throw IoError(system_message(path_, "cannot write (close; the old file is untouched)", errno));
  verify();
  if (fs().rename(temp_.c_str(), path_.c_str()) != 0)
    throw IoError(system_message(path_, "cannot put the new file in place (rename)", errno));
  temp_.clear();
  if (int error = fsync_folder(std::filesystem::path(path_).parent_path().string()); error != 0)
    throw IoError(system_message(
        path_, "the new file is in place, but may not survive a power loss (fsync of the folder)",
        error));
}

// Some disks and file systems take a write and lose it: what is published must read back as
// written.
void DurableFile::verify() {
  try {
    InputFile back(temp_);
    if (back.size() != size_)
      throw IoError(concat(path_, ": wrote ", size_, " bytes, but ", back.size(),
                           " read back (the old file is untouched)"));
    Sha256 hash;
    std::vector<char> buffer(std::size_t{1} << 20);
    for (std::uint64_t at = 0; at < size_; at += buffer.size()) {
      auto n = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), size_ - at));
      back.read(at, buffer.data(), n);
      hash.update(buffer.data(), n);
    }
    if (hash.hex() != hash_.hex())
      throw IoError(path_ +
                    ": what reads back is not what was written (the old file is untouched)");
  } catch (const InputError& e) {  // our own file: an I/O failure, whatever it looks like
    throw IoError(concat(
        path_, ": cannot read back what was written (the old file is untouched): ", e.what()));
  }
}

void write_file_durably(const std::string& path, std::string_view content) {
  DurableFile file(path);
  file.append(content.data(), content.size());
  file.commit();
}

AppendLog::AppendLog(const std::string& path) : path_(path) {
  int fd = retry_interrupted([&] {
    return fs().open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  });
  if (fd < 0) throw IoError(system_message(path, "cannot open for appending", errno));
  fd_ = FileDescriptor(fd);
  struct stat s {};
  if (fs().fstat(fd, &s) != 0) throw IoError(system_message(path, "cannot examine", errno));
  if (!S_ISREG(s.st_mode)) throw IoError(path + ": not a regular file");
}

void AppendLog::append_record(std::string_view record) {
  waiting_ += record;
  std::size_t done = 0;
  const int error = write_all(fd_.get(), waiting_.data(), waiting_.size(), done);
  if (error == 0) return waiting_.clear();
  struct stat s {};
  if (done > 0 && fs().fstat(fd_.get(), &s) == 0 && s.st_size >= static_cast<off_t>(done) &&
      fs().ftruncate(fd_.get(), s.st_size - static_cast<off_t>(done)) == 0)
    done = 0;
  waiting_.erase(0, done);
  throw IoError(system_message(path_, "cannot append", error));
}

void AppendLog::flush() {
  if (!waiting_.empty()) append_record({});
  if (retry_interrupted([&] { return fs().fsync(fd_.get()); }) != 0)
    throw IoError(system_message(path_, "cannot write to the disk (fsync)", errno));
}

}  // namespace lk
