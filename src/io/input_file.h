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
  // Throws InputError if there is no such file, it can't be opened for reading or is not a regular
  // file; IoError if the system fails.
  explicit InputFile(const std::string& path);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  // Exactly `bytes` bytes from `offset`. Throws InputError if the file ends before, or has changed.
  void read(std::uint64_t offset, void* dst, std::size_t bytes) const;

 private:
  std::string path_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

// The whole content of a regular file of at most max_bytes. Throws InputError if it is larger
// (before reading any of it).
std::string read_file(const std::string& path, std::size_t max_bytes);

}  // namespace lk
