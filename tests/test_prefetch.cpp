// Would catch: items out of order or made twice, a thread that runs ahead without end, hangs when
// nobody takes its items, or swallows an error.
#include "run/prefetch.h"

#include <atomic>
#include <chrono>
#include <memory>

#include "harness.h"

using namespace lk;
using namespace std::chrono_literals;

TEST_CASE("items come in order, each made once, never more than `ahead` before they are taken") {
  std::atomic<std::int64_t> made = 0;
  std::int64_t taken = 0;
  Prefetch<std::unique_ptr<std::int64_t>> items(
      [&](std::int64_t i) {
        ++made;
        return std::make_unique<std::int64_t>(i * i);
      },
      5, 205, 2);
  for (std::int64_t i = 5; i < 205; ++i) {
    CHECK(made <= taken + 2);
    CHECK(*items.next() == i * i);
    ++taken;
  }
  CHECK(made == 200);
  CHECK_THROWS_AS(items.next(), Error);
}

TEST_CASE("the next items are made while one is in use") {
  std::atomic<std::int64_t> made = 0;
  Prefetch<int> items([&](std::int64_t) { return static_cast<int>(++made); }, 0, 100, 2);
  CHECK(items.next() == 1);
  while (made < 3) std::this_thread::sleep_for(1ms);  // a hang is the failure
  CHECK(made == 3);
}

TEST_CASE("an error comes out where the item would have, and again if asked again") {
  Prefetch<int> items(
      [](std::int64_t i) {
        if (i == 3) throw InputError("item 3 is bad");
        return static_cast<int>(i);
      },
      0, 10, 2);
  for (int i = 0; i < 3; ++i) CHECK(items.next() == i);
  CHECK_THROWS_WITH_AS(items.next(), "item 3 is bad", InputError);
  CHECK_THROWS_AS(items.next(), InputError);
}

TEST_CASE("leaving early joins the thread, whether it waits, works or has failed") {
  for (int i = 0; i < 100; ++i) {
    std::atomic<int> made = 0;
    {
      Prefetch<int> items(
          [&](std::int64_t item) {
            if (i % 3 == 1) std::this_thread::sleep_for(100us);
            if (i % 3 == 2) throw InputError("at once");
            ++made;
            return static_cast<int>(item);
          },
          0, 1000, 2);
      if (i % 3 != 2) items.next();
    }
    const int at_end = made;
    CHECK(at_end <= 3);
  }
  Prefetch<int> none([](std::int64_t) { return 0; }, 4, 4, 2);
  CHECK_THROWS_AS(none.next(), Error);
}
