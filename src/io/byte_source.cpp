#include "io/byte_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include "io/fs.h"
#include "io/input_file.h"
#include "io/paths.h"
#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

std::string read_to_end(int fd, const std::string& name) {
  std::string all;
  for (std::size_t done = 0;;) {
    all.resize(done + kPieceBytes);
    const ssize_t n =
        retry_interrupted([&] { return fs().read(fd, all.data() + done, kPieceBytes); });
    if (n < 0) throw IoError(system_message(name, "cannot read", errno));
    done += static_cast<std::size_t>(n);
    if (done > ByteSource::kMaxPipeBytes)
      throw InputError(concat(name, ": over ", ByteSource::kMaxPipeBytes,
                              " bytes come from the pipe; write them to a file first"));
    if (n == 0) {
      all.resize(done);
      return all;
    }
  }
}

}  // namespace

ByteSource::ByteSource(const std::string& path) : name_(path) {
  if (path == "-") {
    name_ = "standard input";
    held_ = read_to_end(STDIN_FILENO, name_);
  } else if (path.find('\0') == std::string::npos && is_pipe(path)) {
    // Opening waits for the pipe's writer: without one, there would be nothing to read.
    const int fd = retry_interrupted(
        [&] { return fs().open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY, 0); });
    if (fd < 0) {
      const std::string message = system_message(path, "cannot open", errno);
      if (blames_the_path(errno)) throw InputError(message);
      throw IoError(message);
    }
    const FileDescriptor open(fd);
    held_ = read_to_end(fd, name_);
  } else {
    file_ = std::make_unique<InputFile>(path);
  }
}

ByteSource::~ByteSource() = default;

std::uint64_t ByteSource::size() const { return file_ ? file_->size() : held_.size(); }

void ByteSource::read(std::uint64_t offset, void* dst, std::size_t bytes) const {
  if (file_) return file_->read(offset, dst, bytes);
  if (bytes > held_.size() || offset > held_.size() - bytes)
    throw InputError(concat(name_, ": byte ", offset, ": ", bytes,
                            " bytes wanted, but the data end at ", held_.size()));
  std::memcpy(dst, held_.data() + offset, bytes);
}

}  // namespace lk
