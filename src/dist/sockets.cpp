#include "dist/sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <thread>

#include "tensor/error.h"

namespace lk {
namespace {

constexpr auto kTryAgainAfter = std::chrono::milliseconds(50);

[[noreturn]] void fail(const std::string& where, const char* what) {
  throw IoError(system_message(where, what, errno));
}

int milliseconds_left(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 1 << 30));
}

// Waits until the socket is ready for `events`. False once the deadline is over.
bool wait_for(int socket, short events, Deadline deadline) {
  pollfd waiting{socket, events, 0};
  for (;;) {
    const int left = milliseconds_left(deadline);
    const int n = ::poll(&waiting, 1, left);
    if (n > 0) return true;
    if (n == 0 || (errno != EINTR && errno != EAGAIN)) return false;
  }
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};

}  // namespace

FileDescriptor listen_on(int port, bool this_machine_alone) {
  const std::string where = concat("port ", port);
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.is_open()) fail(where, "can't make a socket");
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(this_machine_alone ? INADDR_LOOPBACK : INADDR_ANY);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0)
    fail(where, "can't listen");
  return socket;
}

int port_of(const FileDescriptor& listening) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  if (::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    fail("socket", "has no name");
  return ntohs(address.sin_port);
}

std::string peer_address(const FileDescriptor& socket) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  char text[INET_ADDRSTRLEN] = {};
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      !::inet_ntop(AF_INET, &address.sin_addr, text, sizeof text))
    fail("socket", "has no other end");
  return text;
}

std::optional<FileDescriptor> connect_to(const std::string& address, int port, Deadline deadline) {
  addrinfo wanted{}, *list = nullptr;
  wanted.ai_family = AF_INET, wanted.ai_socktype = SOCK_STREAM;
  const int error = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &wanted, &list);
  if (error != 0) throw IoError(concat(address, ": ", ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, FreeAddresses> addresses(list);
  while (milliseconds_left(deadline) > 0) {
    for (const addrinfo* at = list; at; at = at->ai_next) {
      FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (!socket.is_open()) fail(address, "can't make a socket");
      if (::connect(socket.get(), at->ai_addr, at->ai_addrlen) == 0) return socket;
    }
    std::this_thread::sleep_for(kTryAgainAfter);
  }
  return std::nullopt;
}

std::optional<FileDescriptor> accept_from(const FileDescriptor& listening, Deadline deadline) {
  while (wait_for(listening.get(), POLLIN, deadline)) {
    FileDescriptor socket(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.is_open()) return socket;
  }
  return std::nullopt;
}

void prepare_for_messages(const FileDescriptor& socket) {
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A machine that is switched off closes no connection: probes find out.
  ::setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  if (::fcntl(socket.get(), F_SETFL, O_NONBLOCK) != 0) fail("socket", "can't be set up");
}

bool send_all(const FileDescriptor& socket, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    if (!wait_for(socket.get(), POLLOUT, deadline)) return false;
    const ssize_t n = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) bytes = bytes.subspan(static_cast<std::size_t>(n));
    if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
  }
  return true;
}

bool receive_all(const FileDescriptor& socket, std::span<std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    if (!wait_for(socket.get(), POLLIN, deadline)) return false;
    const ssize_t n = ::recv(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n > 0) bytes = bytes.subspan(static_cast<std::size_t>(n));
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
  }
  return true;
}

}  // namespace lk
