// LineChannel: lines of text to and from another process, over a socket.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "io/fs.h"

namespace lk {

class LineChannel {
 public:
  LineChannel() = default;
  explicit LineChannel(FileDescriptor socket) : socket_(std::move(socket)) {}
  // Two channels that are each other's ends.
  static std::pair<LineChannel, LineChannel> pair();

  int descriptor() const { return socket_.get(); }
  // Sends a line, which holds no line feed. False if the other end is closed.
  bool send(std::string line);
  // The next line that has come whole, without waiting; nothing if there is none.
  std::optional<std::string> next();
  // Waits for the next line; nothing once the other end is closed.
  std::optional<std::string> wait();
  // Whether the other end is closed and all that it sent was read.
  bool closed() const { return ended_ && received_.find('\n') == received_.npos; }

 private:
  bool receive(bool waits);
  std::optional<std::string> take();

  FileDescriptor socket_;
  std::string received_;  // and not yet taken
  bool ended_ = false;
};

}  // namespace lk
