// ByteSource: the bytes of a data file, a pipe or standard input, to be read more than once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace lk {

class InputFile;

class ByteSource {
 public:
  // The most bytes that are taken from a pipe.
  static constexpr std::uint64_t kMaxPipeBytes = std::uint64_t{8} << 30;

  // Opens `path`: a regular file, read where it lies; or a pipe, or standard input if it is "-",
  // read to its end and held in memory, since a pipe can be read once only. Throws InputError for
  // a path that can't be read and a pipe over the limit, IoError if the system fails.
  ByteSource(const std::string& path);  // not explicit: a path stands for what lies there
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  const std::string& name() const { return name_; }  // for messages: the path, "standard input"
  std::uint64_t size() const;
  // Exactly `bytes` bytes from `offset`; throws as InputFile::read() does.
  void read(std::uint64_t offset, void* dst, std::size_t bytes) const;

 private:
  std::string name_;
  std::unique_ptr<InputFile> file_;  // or
  std::string held_;                 // what came from a pipe
};

}  // namespace lk
