// Processes that meet over TCP: what one says the others hear, and what ends one ends all. Here each is
// a thread with a World of its own.
#include <array>
#include <functional>
#include <future>
#include <map>
#include <thread>

#include "dist/host_transport.h"
#include "dist/launch_place.h"
#include "dist/sockets.h"
#include "dist/world.h"
#include "harness.h"

using namespace lk;
using namespace std::chrono_literals;

namespace {

using Work = std::function<void(World&)>;

// Runs `work` in each of `size` processes; returns each one's error, or null.
std::vector<std::exception_ptr> in_each(int size, const Work& work,
                                        std::chrono::seconds timeout = 20s) {
  FileDescriptor listening = listen_on(0, true);
  LaunchPlace place;
  place.size = size, place.port = port_of(listening);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::jthread> threads;
  for (int r = 0; r < size; ++r) {
    place.rank = place.local_rank = r;
    place.listening = r == 0 ? listening.release() : -1;
    threads.emplace_back([&, place] {
      try {
        World world(place, timeout);
        work(world);
      } catch (...) {
        errors[static_cast<std::size_t>(place.rank)] = std::current_exception();
      }
    });
  }
  threads.clear();
  return errors;
}

void check_none(const std::vector<std::exception_ptr>& errors) {
  for (const std::exception_ptr& e : errors) CHECK_NOTHROW(e ? std::rethrow_exception(e) : void());
}

struct Told {
  std::string text = "nothing";
  ExitCode code = ExitCode::Done;
};
Told told(const std::exception_ptr& e) {
  try {
    if (e) std::rethrow_exception(e);
  } catch (const Error& error) {
    return {error.what(), error.code()};
  }
  return {};
}

std::vector<std::byte> pattern(std::size_t bytes, int from, int to) {
  std::vector<std::byte> all(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    all[i] = static_cast<std::byte>(31 * i + 7 * static_cast<std::size_t>(from) +
                                    static_cast<std::size_t>(to));
  return all;
}

}  // namespace

TEST_CASE("each process hears what all say, in the order of ranks") {
  for (int size : {1, 2, 3, 8}) {
    CAPTURE(size);
    check_none(in_each(size, [size](World& world) {
      for (int turn = 0; turn < 20; ++turn) {
        const std::vector<std::int64_t> numbers = world.gather(1000 * turn + world.rank());
        const std::vector<std::string> texts =
            world.gather(std::string(static_cast<std::size_t>(world.rank() * turn), 'x'));
        for (int r = 0; r < size; ++r) {
          check(numbers[static_cast<std::size_t>(r)] == 1000 * turn + r, "another number");
          check(std::ssize(texts[static_cast<std::size_t>(r)]) == r * turn, "another text");
        }
      }
    }));
  }
}

TEST_CASE("large messages of uneven sizes go both ways at once") {
  check_none(in_each(3, [](World& world) {
    auto bytes = [](int from, int to) {
      return static_cast<std::size_t>(from == 1 ? 0 : 5'000'000 * from + 3'000'001 * to);
    };
    std::map<int, std::vector<std::byte>> out, in;
    std::vector<World::Send> sends;
    std::vector<World::Receive> receives;
    for (int r = 0; r < 3; ++r) {
      if (r == world.rank()) continue;
      out[r] = pattern(bytes(world.rank(), r), world.rank(), r);
      in[r].resize(bytes(r, world.rank()));
      for (std::size_t half : {0, 1}) {  // two messages each
        const std::size_t a = half * out[r].size() / 2, b = (half + 1) * out[r].size() / 2;
        sends.push_back({r, std::span(out[r]).subspan(a, b - a)});
        const std::size_t c = half * in[r].size() / 2, d = (half + 1) * in[r].size() / 2;
        receives.push_back({r, std::span(in[r]).subspan(c, d - c)});
      }
    }
    world.exchange(sends, receives);
    for (const auto& [r, got] : in)
      check(got == pattern(bytes(r, world.rank()), r, world.rank()), "other bytes");
  }));
}

TEST_CASE("an error of one process is the error of all, with its exit code") {
  for (const ExitCode code : {ExitCode::OutOfMemory, ExitCode::BadInput, ExitCode::Internal}) {
    const auto errors = in_each(4, [code](World& world) {
      world.gather(1);
      try {
        if (world.rank() == 2) throw Error("no room", code);
        for (;;) world.gather(2);
      } catch (const Error& e) {
        world.end_with(e);
        throw;
      }
    });
    for (const std::exception_ptr& e : errors) {
      CHECK(told(e).code == code);
      CHECK(told(e).text.find("no room") != std::string::npos);
    }
    CHECK(told(errors[2]).text == "no room");
  }
}

TEST_CASE("a process that goes without a word is named") {
  const auto errors = in_each(2, [](World& world) {
    world.gather(1);
    if (world.rank() == 1) return;  // as one that is killed: its connections close
    for (;;) world.gather(2);
  });
  CHECK(told(errors[0]).code == ExitCode::Io);
  CHECK(told(errors[0]).text.find("process 1 of 2 is gone") == 0);
}

TEST_CASE("a process that hangs is given up after the timeout") {
  const auto errors = in_each(
      2,
      [](World& world) {
        world.gather(1);
        if (world.rank() == 1) return std::this_thread::sleep_for(3s);
        world.gather(2);
      },
      1s);
  CHECK(told(errors[0]).code == ExitCode::Io);
  CHECK(told(errors[0]).text == "process 1 of 2 was silent for 1 s");
}

TEST_CASE("all are awaited for longer than the timeout, but not one that has ended") {
  check_none(in_each(
      2,
      [](World& world) {
        if (world.leads()) std::this_thread::sleep_for(2500ms);
        world.await_all();
        CHECK(world.timeout() == 1s);
        world.gather(7);
      },
      1s));
  const auto errors = in_each(2, [](World& world) {
    telling_others(world, [&] {
      if (world.leads()) throw OutOfMemoryError("too little");
      world.await_all();
    });
  });
  CHECK(told(errors[1]).text == "process 0 of 2: too little");
}

TEST_CASE("who does not come is named, and strangers are sent away") {
  FileDescriptor listening = listen_on(0, true);
  const int port = port_of(listening);
  LaunchPlace place;
  place.size = 3, place.port = port, place.listening = listening.release();
  auto leader = std::async([&] { World(place, 2s); });
  auto stranger = connect_to("127.0.0.1", port, std::chrono::steady_clock::now() + 1s);
  REQUIRE(stranger);
  const std::string text =
      "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a stranger, at length\r\n\r\n";
  send_all(*stranger, std::as_bytes(std::span(text)), std::chrono::steady_clock::now() + 1s);
  LaunchPlace second = place;
  second.rank = 1, second.listening = -1;
  auto follower = std::async([&] { World(second, 2s); });
  std::string says;
  try {
    leader.get();
  } catch (const IoError& e) {
    says = e.what();
  }
  CHECK(says == "process 0 of 3 waited 2 s for process 2 of 3");
  CHECK_THROWS_AS(follower.get(), IoError);
}

TEST_CASE("processes of runs of different sizes do not meet") {
  FileDescriptor listening = listen_on(0, true);
  LaunchPlace place;
  place.size = 2, place.port = port_of(listening), place.listening = listening.release();
  auto leader = std::async([&] { World(place, 5s); });
  LaunchPlace other = place;
  other.rank = 1, other.size = 3, other.listening = -1;
  auto follower = std::async([&] { World(other, 5s); });
  CHECK_THROWS_AS(leader.get(), UsageError);
  CHECK_THROWS_AS(follower.get(), IoError);
}

TEST_CASE("launchers' environments are understood, and what is wrong in them is named") {
  using Variables = std::map<std::string, std::string>;
  auto find = [](const Variables& set) {
    return find_launch_place([&](const char* name) {
      const auto at = set.find(name);
      return at == set.end() ? nullptr : at->second.c_str();
    });
  };
  auto refused = [&](const Variables& set) {
    try {
      find(set);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  CHECK(!find({}));
  const Variables torchrun = {{"RANK", "5"},
                              {"WORLD_SIZE", "8"},
                              {"LOCAL_RANK", "1"},
                              {"MASTER_ADDR", "a"},
                              {"MASTER_PORT", "29500"}};
  auto place = find(torchrun);
  REQUIRE(place);
  CHECK(place->rank == 5);
  CHECK(place->size == 8);
  CHECK(place->local_rank == 1);
  CHECK(place->address == "a");
  CHECK(place->port == 29500);
  Variables agent = torchrun;  // whose own store listens on that port
  agent["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  CHECK(find(agent)->port == 29501);
  Variables alone = torchrun;
  alone["WORLD_SIZE"] = "1", alone["RANK"] = "0";
  CHECK(!find(alone));

  place = find({{"OMPI_COMM_WORLD_RANK", "1"},
                {"OMPI_COMM_WORLD_SIZE", "2"},
                {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                {"PMIX_NAMESPACE", "job-17"}});
  REQUIRE(place);
  CHECK(place->rank == 1);
  CHECK(place->address == "127.0.0.1");
  CHECK(place->port >= 1024);
  place = find({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "7"}});
  REQUIRE(place);
  CHECK(place->local_rank == 3);
  CHECK(place->port == 7);
  place = find({{"SLURM_PROCID", "2"},
                {"SLURM_STEP_NUM_TASKS", "4"},
                {"SLURM_LOCALID", "0"},
                {"SLURM_STEP_TASKS_PER_NODE", "2(x2)"},
                {"SLURM_JOB_ID", "99"},
                {"MASTER_ADDR", "node1"}});
  REQUIRE(place);
  CHECK(place->local_rank == 0);
  CHECK(place->local_size == 2);
  CHECK(place->address == "node1");
  // A batch script that asked for four tasks is itself no task.
  CHECK(!find({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}}));

  CHECK(refused({{"RANK", "8"}, {"WORLD_SIZE", "8"}}).find("RANK=8") == 0);
  for (const char* size :
       {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
    CHECK(refused({{size, "2"}}).find(concat(size, "=2")) == 0);
  CHECK(!find({{"WORLD_SIZE", "1"}}));
  CHECK(!find({{"WORLD_SIZE", ""}}));
  // A script's own variable, beside the launcher's.
  CHECK(find({{"WORLD_SIZE", "2"}, {"PMI_RANK", "0"}, {"PMI_SIZE", "2"}, {"MASTER_ADDR", "h"}})
            ->size == 2);
  CHECK(refused({{"RANK", "x"}, {"WORLD_SIZE", "8"}}).find("RANK=x") == 0);
  CHECK(refused({{"RANK", "1"}, {"WORLD_SIZE", "1"}}).find("RANK=1") == 0);
  CHECK(refused({{"RANK", "1"}, {"WORLD_SIZE", "8"}}).find("MASTER_ADDR is not set") == 0);
  CHECK(refused({{"RANK", "1"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "a"}}).find("MASTER_PORT") ==
        0);
  CHECK(refused({{"SLURM_PROCID", "2"},
                 {"SLURM_STEP_NUM_TASKS", "4"},
                 {"SLURM_STEP_TASKS_PER_NODE", "2(x2)"}})
            .find("MASTER_ADDR") == 0);
}
