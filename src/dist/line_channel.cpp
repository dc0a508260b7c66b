#include "dist/line_channel.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "tensor/error.h"

namespace lk {

std::pair<LineChannel, LineChannel> LineChannel::pair() {
  int ends[2] = {};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw IoError(system_message("socketpair", "can't be made", errno));
  return {LineChannel(FileDescriptor(ends[0])), LineChannel(FileDescriptor(ends[1]))};
}

bool LineChannel::send(std::string line) {
  line += '\n';
  for (std::size_t sent = 0; sent < line.size();) {
    const ssize_t n = retry_interrupted([&] {
      return ::send(socket_.get(), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    });
    if (n < 0) return false;
    sent += static_cast<std::size_t>(n);
  }
  return true;
}

std::optional<std::string> LineChannel::next() {
  while (receive(false)) {
  }
  return take();
}

std::optional<std::string> LineChannel::wait() {
  for (;;) {
    if (std::optional<std::string> line = take()) return line;
    if (!receive(true)) return std::nullopt;
  }
}

// Reads what has come. False if nothing has, or nothing ever will.
bool LineChannel::receive(bool waits) {
  std::array<char, 4096> buffer;
  const ssize_t n = retry_interrupted([&] {
    return ::recv(socket_.get(), buffer.data(), buffer.size(), waits ? 0 : MSG_DONTWAIT);
  });
  if (n > 0) received_.append(buffer.data(), static_cast<std::size_t>(n));
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) ended_ = true;
  return n > 0;
}

std::optional<std::string> LineChannel::take() {
  const std::size_t end = received_.find('\n');
  if (end == received_.npos) return std::nullopt;
  std::string line = received_.substr(0, end);
  received_.erase(0, end + 1);
  return line;
}

}  // namespace lk
