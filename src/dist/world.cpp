#include "dist/world.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <utility>

#include "dist/meeting.h"
#include "dist/sockets.h"

namespace lk {
namespace {

enum class Kind : std::uint32_t { Data = 0x4c4b4401, End = 0x4c4b4502 };

struct Header {
  Kind kind = Kind::Data;
  std::uint32_t call = 0;   // Data: which exchange() it belongs to. End: the error's exit code
  std::uint64_t bytes = 0;  // that follow
};

constexpr std::uint64_t kLongestError = 64 << 10;
constexpr auto kTimeToHear = std::chrono::seconds(2);
constexpr int kLongestWaitMs = 1000;
constexpr int kPatience = 10;  // times the timeout, for work that one process does for all

}  // namespace

// One call of exchange(): what is still to be sent to each process and to be received from it.
class World::Exchange {
 public:
  Exchange(World& world, std::span<const Send> sends, std::span<const Receive> receives)
      : world_(world), traffic_(world.peers_.size()) {
    headers_.reserve(sends.size());  // spans point into it
    for (const Send& s : sends) {
      headers_.push_back({Kind::Data, world.calls_, s.bytes.size()});
      Traffic& t = of(s.peer);
      t.out.push_back(std::as_bytes(std::span(&headers_.back(), 1)));
      t.out.push_back(s.bytes);
    }
    for (const Receive& r : receives) of(r.peer).in.push_back(r.bytes);
  }

  void run() {
    auto last_progress = std::chrono::steady_clock::now();
    for (;;) {
      std::vector<pollfd> waiting;
      std::vector<int> ranks;
      for (int r = 0; r < world_.size(); ++r) {
        const Traffic& t = of(r);
        const int events = (t.out.empty() ? 0 : POLLOUT) | (t.in.empty() ? 0 : POLLIN);
        if (events == 0) continue;
        waiting.push_back({socket(r), static_cast<short>(events), 0});
        ranks.push_back(r);
      }
      if (waiting.empty()) return;
      ::poll(waiting.data(), waiting.size(), kLongestWaitMs);
      bool progress = false;
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        if (waiting[i].revents == 0) continue;
        // First what has come: a process that ends says why before it closes the connection.
        progress = (!of(ranks[i]).in.empty() && receive(ranks[i])) || progress;
        progress = (!of(ranks[i]).out.empty() && send(ranks[i])) || progress;
      }
      const auto now = std::chrono::steady_clock::now();
      if (progress) last_progress = now;
      if (now - last_progress > world_.timeout_)
        throw IoError(concat(name(ranks[0]), " was silent for ", world_.timeout_.count(), " s"));
    }
  }

 private:
  struct Traffic {
    std::deque<std::span<const std::byte>> out;  // headers and contents
    std::deque<std::span<std::byte>> in;         // contents
    Header header;                               // of the message that comes in
    std::size_t header_bytes = 0;                // of it that have come
  };

  Traffic& of(int rank) { return traffic_[static_cast<std::size_t>(rank)]; }
  Peer& peer(int rank) { return world_.peers_[static_cast<std::size_t>(rank)]; }
  int socket(int rank) { return peer(rank).socket.get(); }
  std::string name(int rank) const { return process_name(rank, world_.size()); }
  [[noreturn]] void gone(int rank) const {
    throw IoError(concat(name(rank), " is gone: it was killed or its connection was lost"));
  }

  bool send(int rank) {
    Traffic& t = of(rank);
    bool any = false;
    while (!t.out.empty()) {
      auto& now = t.out.front();
      if (!now.empty()) {
        const ssize_t n = ::send(socket(rank), now.data(), now.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) break;
        if (n < 0) {
          if (t.in.empty()) listen_for_end(rank);
          break;  // else receive() finds out why
        }
        any = true;
        now = now.subspan(static_cast<std::size_t>(n));
        peer(rank).mid_message = true;
        if (!now.empty()) continue;
      }
      t.out.pop_front();
      if (t.out.size() % 2 == 0) peer(rank).mid_message = false;
    }
    return any;
  }

  // A process that takes nothing more may have said why.
  [[noreturn]] void listen_for_end(int rank) {
    Header header;
    const Deadline end = std::chrono::steady_clock::now() + kTimeToHear;
    if (receive_all(peer(rank).socket, writable_bytes_of(header), end) && header.kind == Kind::End)
      throw_end(rank, header);
    gone(rank);
  }

  bool receive(int rank) {
    Traffic& t = of(rank);
    bool any = false;
    while (!t.in.empty()) {
      const bool in_header = t.header_bytes < sizeof t.header;
      const std::span<std::byte> to =
          in_header ? writable_bytes_of(t.header).subspan(t.header_bytes) : t.in.front();
      if (!to.empty()) {
        const ssize_t n = ::recv(socket(rank), to.data(), to.size(), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) break;
        if (n <= 0) gone(rank);
        any = true;
        if (in_header) {
          t.header_bytes += static_cast<std::size_t>(n);
          if (t.header_bytes == sizeof t.header) check_header(rank);
          continue;
        }
        t.in.front() = to.subspan(static_cast<std::size_t>(n));
        if (!t.in.front().empty()) continue;
      }
      t.in.pop_front();
      t.header_bytes = 0;
    }
    return any;
  }

  void check_header(int rank) {
    const Header& h = of(rank).header;
    if (h.kind == Kind::End) throw_end(rank, h);
    check(h.kind == Kind::Data && h.call == world_.calls_ && h.bytes == of(rank).in.front().size(),
          name(rank), " is out of step: it sent ", h.bytes, " bytes in call ", h.call,
          ", expected were ", of(rank).in.front().size(), " in call ", world_.calls_);
  }

  [[noreturn]] void throw_end(int rank, const Header& header) {
    std::string text(std::min(header.bytes, kLongestError), ' ');
    const Deadline end = std::chrono::steady_clock::now() + kTimeToHear;
    receive_all(peer(rank).socket, std::as_writable_bytes(std::span(text)), end);
    const auto most = static_cast<std::uint32_t>(ExitCode::NothingTrained);
    throw Error(concat(name(rank), ": ", text),
                static_cast<ExitCode>(std::clamp(header.call, 1u, most)));
  }

  World& world_;
  std::vector<Traffic> traffic_;
  std::vector<Header> headers_;
};

World::World(const LaunchPlace& place, std::chrono::seconds timeout)
    : rank_(place.rank),
      local_rank_(place.local_rank),
      local_size_(place.local_size),
      timeout_(timeout) {
  peers_.clear();
  for (FileDescriptor& socket : meet(place, timeout)) peers_.push_back({std::move(socket)});
}

void World::exchange(std::span<const Send> sends, std::span<const Receive> receives) {
  ++calls_;
  Exchange(*this, sends, receives).run();
}

std::vector<std::int64_t> World::gather(std::int64_t number) {
  std::vector<std::int64_t> all(peers_.size(), number);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) continue;
    sends.push_back({r, bytes_of(number)});
    receives.push_back({r, writable_bytes_of(all[static_cast<std::size_t>(r)])});
  }
  exchange(sends, receives);
  return all;
}

std::vector<std::string> World::gather(const std::string& text) {
  const std::vector<std::int64_t> lengths = gather(std::ssize(text));
  std::vector<std::string> all(peers_.size(), text);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) continue;
    const auto i = static_cast<std::size_t>(r);
    all[i].assign(static_cast<std::size_t>(lengths[i]), ' ');
    sends.push_back({r, std::as_bytes(std::span(text))});
    receives.push_back({r, std::as_writable_bytes(std::span(all[i]))});
  }
  exchange(sends, receives);
  return all;
}

void World::await_all() {
  const auto timeout = std::exchange(timeout_, kPatience * timeout_);
  gather(0);
  timeout_ = timeout;
}

void World::end_with(const Error& error) noexcept {
  const std::string_view text = error.what();
  const Header header{Kind::End, static_cast<std::uint32_t>(error.code()),
                      std::min<std::uint64_t>(text.size(), kLongestError)};
  const Deadline end = std::chrono::steady_clock::now() + kTimeToHear;
  for (Peer& p : peers_) {
    if (!p.socket.is_open() || p.mid_message) continue;
    if (send_all(p.socket, bytes_of(header), end))
      send_all(p.socket, std::as_bytes(std::span(text.data(), header.bytes)), end);
    ::shutdown(p.socket.get(), SHUT_WR);
  }
  // Closing a connection on which something has come would take back what was sent.
  std::array<std::byte, 4096> ignored;
  for (Peer& p : peers_)
    while (p.socket.is_open() && receive_all(p.socket, ignored, end)) {
    }
}

std::string process_name(int rank, int size) { return concat("process ", rank, " of ", size); }

}  // namespace lk
