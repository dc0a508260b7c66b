// TCP connections as World needs them. Errors are IoErrors that name the address.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "io/fs.h"

namespace lk {

using Deadline = std::chrono::steady_clock::time_point;

// A socket that listens on `port` (0: any that is free) of this machine alone or of all its addresses.
FileDescriptor listen_on(int port, bool this_machine_alone);
int port_of(const FileDescriptor& listening);
// The address of a connection's other end.
std::string peer_address(const FileDescriptor& socket);

// Connects, trying again while nobody listens there. Nothing once the deadline is over.
std::optional<FileDescriptor> connect_to(const std::string& address, int port, Deadline deadline);
std::optional<FileDescriptor> accept_from(const FileDescriptor& listening, Deadline deadline);
// Small messages leave at once, and calls on the socket do not wait.
void prepare_for_messages(const FileDescriptor& socket);

// All of `bytes`, on a connection that is not prepared yet. False if the other end is gone or the
// deadline over.
bool send_all(const FileDescriptor& socket, std::span<const std::byte> bytes, Deadline deadline);
bool receive_all(const FileDescriptor& socket, std::span<std::byte> bytes, Deadline deadline);

// The bytes of a value that is copied as it lies in memory.
template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}
template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

}  // namespace lk
