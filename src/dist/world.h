// World: the processes of one run, each connected with each other over TCP.
//
// All processes make the same calls in the same order; a call returns once all that this process needs
// has come. A message is a header and its bytes. What ends a process is told to the others in place of
// their next message, so that all end for the same reason; a process that is killed says nothing, and
// its connections close. One that hangs is given up after the timeout.
#pragma once

#include <chrono>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "dist/launch_place.h"
#include "io/fs.h"
#include "tensor/error.h"

namespace lk {

class World {
 public:
  // This process alone.
  World() = default;
  // Finds the other processes and connects with them. Throws IoError naming who did not come within
  // `timeout`; UsageError if one is another version of this program.
  World(const LaunchPlace& place, std::chrono::seconds timeout);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }
  // Among the processes of this machine, and how many these are.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  std::chrono::seconds timeout() const { return timeout_; }
  bool leads() const { return rank_ == 0; }

  struct Send {
    int peer = 0;
    std::span<const std::byte> bytes = {};
  };
  struct Receive {
    int peer = 0;
    std::span<std::byte> bytes = {};
  };
  // Sends and receives all pieces at once: those between two processes in the same order and sizes on
  // both sides. Throws IoError naming the process that is gone or silent for the timeout; the error
  // of a process that has ended with one.
  void exchange(std::span<const Send> sends, std::span<const Receive> receives);

  // What each process gives, by rank.
  std::vector<std::int64_t> gather(std::int64_t number);
  std::vector<std::string> gather(const std::string& text);
  // Returns once all have come here, for what may take one of them ten times the timeout.
  void await_all();

  // Tells the others what ends this process, and waits a moment for them to hear it. The World is of
  // no use afterwards.
  void end_with(const Error& error) noexcept;

 private:
  struct Peer {
    FileDescriptor socket = {};
    bool mid_message = false;  // part of a message was sent
  };
  class Exchange;

  int rank_ = 0, local_rank_ = 0, local_size_ = 1;
  std::chrono::seconds timeout_{0};
  std::vector<Peer> peers_ = std::vector<Peer>(1);  // by rank; this process's own is not open
  std::uint32_t calls_ = 0;                         // of exchange()
};

// "process 2 of 4", as messages name it.
std::string process_name(int rank, int size);

// Returns what `work` does. If it throws, the other processes hear why, and so end too.
template <class Work>
auto telling_others(World& world, const Work& work) {
  try {
    return work();
  } catch (const Error& e) {
    world.end_with(e);
    throw;
  } catch (const std::bad_alloc&) {
    world.end_with(OutOfMemoryError("out of host memory"));
    throw;
  } catch (const std::exception& e) {
    world.end_with(Error(e.what()));
    throw;
  }
}

}  // namespace lk
