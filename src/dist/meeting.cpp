#include "dist/meeting.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "dist/sockets.h"
#include "dist/world.h"
#include "version.h"

namespace lk {
namespace {

constexpr auto kHelloTime = std::chrono::seconds(5);  // a stranger that says nothing is sent away

template <std::size_t N>
std::array<char, N> padded(const std::string& text) {
  check(text.size() < N, text, ": too long");
  std::array<char, N> all{};
  std::copy(text.begin(), text.end(), all.begin());
  return all;
}

// What a process says first on each connection that it makes.
struct Hello {
  std::array<char, 16> what = padded<16>("lorikeet rank");
  std::array<char, 32> version = padded<32>(kVersion);
  std::int32_t rank = 0, size = 0, port = 0;  // port: where it listens
};

// Where a process listens.
struct Place {
  std::array<char, 64> address{};
  std::int32_t port = 0;
};

Deadline after(std::chrono::seconds seconds) { return std::chrono::steady_clock::now() + seconds; }

class Meeting {
 public:
  Meeting(const LaunchPlace& place, std::chrono::seconds timeout)
      : place_(place), timeout_(timeout), end_(after(timeout)) {
    connections_.resize(static_cast<std::size_t>(place.size));
  }

  std::vector<FileDescriptor> go() {
    if (place_.rank == 0)
      lead();
    else
      follow();
    for (const FileDescriptor& c : connections_)
      if (c.is_open()) prepare_for_messages(c);
    return std::move(connections_);
  }

 private:
  void lead() {
    const FileDescriptor listening =
        place_.listening >= 0 ? FileDescriptor(place_.listening) : listen_on(place_.port, false);
    std::vector<Place> places(connections_.size());
    while (const int missing = first_missing(1)) accept_one(listening, places, missing);
    for (FileDescriptor& c : connections_)
      if (c.is_open() && !send_all(c, std::as_bytes(std::span(places)), end_)) lost(c);
  }

  void follow() {
    const bool near = place_.address.starts_with("127.") || place_.address == "localhost";
    const FileDescriptor listening = listen_on(0, near);
    call(0, place_.address, place_.port, port_of(listening));
    std::vector<Place> places(connections_.size());
    if (!receive_all(connections_[0], std::as_writable_bytes(std::span(places)), end_))
      lost(connections_[0]);
    for (int r = 1; r < place_.rank; ++r)
      call(r, at(places, r).address.data(), at(places, r).port, 0);
    while (const int missing = first_missing(place_.rank + 1))
      accept_one(listening, places, missing);
  }

  void call(int rank, const std::string& address, int port, int own_port) {
    std::optional<FileDescriptor> connection = connect_to(address, port, end_);
    if (!connection)
      throw IoError(concat(name(rank), " can't be reached at ", address, ":", port, " within ",
                           timeout_.count(), " s"));
    Hello hello;
    hello.rank = place_.rank, hello.size = place_.size, hello.port = own_port;
    at(connections_, rank) = std::move(*connection);
    if (!send_all(at(connections_, rank), bytes_of(hello), end_)) lost(at(connections_, rank));
  }

  void accept_one(const FileDescriptor& listening, std::vector<Place>& places, int missing) {
    std::optional<FileDescriptor> connection = accept_from(listening, end_);
    if (!connection)
      throw IoError(
          concat(name(place_.rank), " waited ", timeout_.count(), " s for ", name(missing)));
    Hello hello;
    const bool heard =
        receive_all(*connection, writable_bytes_of(hello), std::min(end_, after(kHelloTime)));
    if (!heard || hello.what != Hello{}.what) return;  // a stranger
    require(hello.version == Hello{}.version && hello.size == place_.size,
            "a process came that is ", "another version of this program or of a run of ",
            hello.size, " processes, not ", place_.size);
    require(hello.rank > place_.rank && hello.rank < place_.size &&
                !at(connections_, hello.rank).is_open(),
            name(hello.rank), " came twice, or out of turn");
    Place& of = at(places, hello.rank);
    of.address = padded<64>(peer_address(*connection));
    of.port = hello.port;
    at(connections_, hello.rank) = std::move(*connection);
  }

  // The lowest rank from `first` on without a connection; 0 if there is none.
  int first_missing(int first) const {
    for (int r = first; r < place_.size; ++r)
      if (!connections_[static_cast<std::size_t>(r)].is_open()) return r;
    return 0;
  }

  [[noreturn]] void lost(const FileDescriptor& connection) const {
    const auto r = static_cast<int>(&connection - connections_.data());
    throw IoError(concat(name(r), " went away before all had come"));
  }

  template <class T>
  static T& at(std::vector<T>& all, int rank) {
    return all[static_cast<std::size_t>(rank)];
  }
  std::string name(int rank) const { return process_name(rank, place_.size); }

  const LaunchPlace& place_;
  std::chrono::seconds timeout_;
  Deadline end_;
  std::vector<FileDescriptor> connections_;
};

}  // namespace

std::vector<FileDescriptor> meet(const LaunchPlace& place, std::chrono::seconds timeout) {
  return Meeting(place, timeout).go();
}

}  // namespace lk
