// InputFile: careful reads of files that may be wrong, or change meanwhile.
#pragma once

#include <cstdint>
#include <string>

#include "io/fs.h"

namespace lk {

// A regular file opened for reading (never blocks on a FIFO; directories and devices are refused).
// Reads are pread: a file cut short gives an InputError, never a signal or silent zeros. Every read
// checks that size and modification time are still those at opening. Safe to read from several
// threads at once.
class InputFile {
 public:
  // Whether the file stays open between reads. One of thousands may not: then each read opens it
  // again, and refuses a file that is not the one of the first time.
  enum class Between { Open, Closed };

  // Throws InputError if there is no such file, it can't be opened for reading or is not a regular
  // file, or stands for one that git-lfs has; IoError if the system fails.
  explicit InputFile(const std::string& path, Between between = Between::Open);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return identity_.size; }
  // Exactly `bytes` bytes from `offset`. Throws InputError if the file ends before, or has changed.
  void read(std::uint64_t offset, void* dst, std::size_t bytes) const;

 private:
  // What tells one state of one file from any other.
  struct Identity {
    dev_t device;
    ino_t number;
    std::uint64_t size;
    std::int64_t modified_ns;
    bool operator==(const Identity&) const = default;
  };
  FileDescriptor open() const;
  Identity identity(int fd) const;

  std::string path_;
  FileDescriptor fd_;  // not open between reads where Between::Closed asks for that
  Identity identity_{};
};

// The whole content of a regular file of at most max_bytes. Throws InputError if it is larger
// (before reading any of it).
std::string read_file(const std::string& path, std::size_t max_bytes);

}  // namespace lk
