// Processes of one run as threads: each has a device, a model and connections of its own.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "dist/host_transport.h"
#include "dist/sockets.h"

namespace lk::test {

// Runs work(rank, transport) of `size` processes that are connected, each in a thread.
inline void run_processes(int size, const std::function<void(int, Transport&)>& work) {
  FileDescriptor listening = listen_on(0, true);
  LaunchPlace place;
  place.size = size, place.port = port_of(listening);
  std::vector<std::jthread> threads;
  for (int r = 0; r < size; ++r) {
    place.rank = r, place.listening = r == 0 ? listening.release() : -1;
    threads.emplace_back([place, size, &work] {
      World world = size > 1 ? World(place, std::chrono::seconds(30)) : World();
      HostTransport transport(world);
      work(place.rank, transport);
    });
  }
}

}  // namespace lk::test
