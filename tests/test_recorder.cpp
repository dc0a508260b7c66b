// Recorder: would catch work recorded too early or twice, a recording run for other sizes, one kept
// too long or dropped too soon, and memory that is not shared.
#include "tensor/recorder.h"

#include <vector>

#include "harness.h"
#include "replaying_backend.h"

using namespace lk;
using namespace lk::test;

namespace {

// What the work reads and writes: a value that stays where it is.
struct Cell {
  std::shared_ptr<int> input = std::make_shared<int>(0);
};

// Work that records what it reads.
struct Subject {
  ReplayingBackend backend;
  std::vector<int> seen;
  Recorder<int, Cell> recorder;
  explicit Subject(Recorder<int, Cell>::Limits limits, bool enabled = true)
      : recorder(backend, enabled, limits) {}

  // Runs the work of these sizes on a new input as a caller would. Returns true if it ran as a
  // recording.
  bool run(int sizes, int input) {
    if (Cell* cell = recorder.find(sizes)) {
      *cell->input = input;
      recorder.replay();
      return true;
    }
    Cell cell;
    *cell.input = input;
    const auto work = [this, cell] { seen.push_back(*cell.input); };
    if (recorder.record(sizes, cell, work)) return true;
    recorder.run_beside(work);
    return false;
  }
};

}  // namespace

TEST_CASE("work is launched, then recorded, then replayed on new inputs") {
  Subject s({.recordings = 2, .launched = 2});
  CHECK(!s.run(1, 10));
  CHECK(s.backend.recorded == 0);
  CHECK(s.run(1, 11));
  CHECK(s.run(1, 12));
  CHECK(s.run(1, 13));
  CHECK(s.backend.recorded == 1);
  CHECK(s.backend.replayed == 3);
  CHECK(s.seen == std::vector{10, 11, 12, 13});  // each ran once
}

TEST_CASE("the latest used recordings are kept, beside the memory of an earlier one") {
  Subject s({.recordings = 2, .launched = 8});
  for (int sizes : {1, 1, 2, 2}) s.run(sizes, 0);
  CHECK(s.backend.recorded_beside == 1);  // the first has memory of its own
  CHECK(s.run(1, 0));                     // now 2 is the oldest
  CHECK(!s.run(3, 0));
  CHECK(s.run(3, 0));
  CHECK(s.backend.recorded_beside == 2);
  CHECK(s.run(1, 0));
  CHECK(!s.run(2, 0));  // dropped: launched once more, and then recorded again
  CHECK(s.run(2, 0));
  CHECK(s.backend.recorded == 4);
  CHECK(s.backend.live == 2);
}

TEST_CASE("sizes that come again too late are not recorded") {
  Subject s({.recordings = 4, .launched = 2});
  for (int round = 0; round < 3; ++round)
    for (int sizes : {1, 2, 3}) CHECK(!s.run(sizes, 0));
  CHECK(s.backend.recorded == 0);
  s.recorder.forget_launched();
  CHECK(!s.run(3, 0));
  CHECK(s.run(3, 0));
}

TEST_CASE("other work runs beside a recording if there is one") {
  Subject s({.recordings = 2, .launched = 2});
  int ran = 0;
  s.recorder.run_beside([&] { ++ran; });
  CHECK(s.backend.run_beside == 0);
  s.run(1, 0), s.run(1, 0);
  s.recorder.run_beside([&] { ++ran; });
  CHECK(s.backend.run_beside == 1);
  CHECK(ran == 2);
  s.recorder.clear();
  CHECK(s.backend.live == 0);
  CHECK(!s.run(1, 0));
}

TEST_CASE("nothing is recorded where that is switched off, or where the device can't") {
  Subject off({.recordings = 2, .launched = 2}, false);
  Subject unable({.recordings = 2, .launched = 2});
  unable.backend.refuses = true;
  for (int i = 0; i < 3; ++i) {
    CHECK(!off.run(1, i));
    CHECK(!unable.run(1, i));
  }
  CHECK(off.backend.recorded == 0);
  CHECK(unable.seen == std::vector{0, 1, 2});
}
