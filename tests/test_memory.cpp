// Memory by purpose: the ledger counts, the cache reuses, the limits hold.
#include <random>
#include <set>

#include "cpu_ops.h"
#include "parts_check.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("a share counts bytes of one purpose under another, for as long as it lives") {
  auto b = make_cpu_backend();
  Ledger& ledger = b->ledger();
  Tensor t = b->empty(Tag::Weights, DType::F32, {50});
  {
    Ledger::Share share(ledger, Tag::Weights, Tag::Params, 80);
    CHECK(ledger[Tag::Weights].live_bytes == 120);
    CHECK(ledger[Tag::Params].live_bytes == 80);
    CHECK(ledger.total().live_bytes == 200);
    Ledger::Share moved = std::move(share);
    CHECK(moved.bytes() == 80);
    CHECK(share.bytes() == 0);
    CHECK(ledger[Tag::Params].live_bytes == 80);
  }
  CHECK(ledger[Tag::Weights].live_bytes == 200);
  CHECK(ledger[Tag::Params].live_bytes == 0);
  CHECK(ledger[Tag::Params].peak_bytes == 80);
}

TEST_CASE("the ledger follows every tensor") {
  std::unique_ptr<Backend> b = make_cpu_backend();
  const Ledger& ledger = b->ledger();
  {
    Tensor w = b->empty(Tag::Weights, DType::BF16, {10, 10});
    Tensor a = b->empty(Tag::Activations, DType::F32, {10});
    Tensor view = w.slice_cols(0, 5);
    CHECK(ledger[Tag::Weights].live_bytes == 200);
    CHECK(ledger[Tag::Activations].live_bytes == 40);
    CHECK(ledger.total().live_bytes == 240);
    w = {};
    CHECK(ledger[Tag::Weights].live_bytes == 200);  // the view still holds it
  }
  CHECK(ledger.total().live_bytes == 0);
  CHECK(ledger.total().peak_bytes == 240);
  CHECK(ledger[Tag::Weights].total_count == 1);
  b->ledger().reset_peaks();
  CHECK(ledger.total().peak_bytes == 0);
}

TEST_CASE("a block that comes back twice, or is not ours, changes nothing") {
  std::unique_ptr<Backend> b = make_cpu_backend();
  int elsewhere = 0;
  void* block = nullptr;
  {
    Tensor t = b->empty(Tag::Activations, DType::F32, {10});
    block = t.raw();
    b->deallocate(&elsewhere, 40, Tag::Activations);
    CHECK(b->ledger()[Tag::Activations].live_bytes == 40);
  }
  b->deallocate(block, 40, Tag::Activations);
  CHECK(b->ledger()[Tag::Activations].live_bytes == 0);
  CHECK(b->ledger()[Tag::Activations].live_count == 0);
  Tensor x = b->empty(Tag::Activations, DType::F32, {10}),
         y = b->empty(Tag::Activations, DType::F32, {10});
  CHECK(x.raw() == block);
  CHECK(y.raw() != block);  // it was given back once
}

TEST_CASE("gradients and moments need their owner") {
  CHECK_THROWS_AS(fast().empty(Tag::Gradients, DType::F32, {1}), Error);
  CHECK_THROWS_AS(fast().empty(Tag::Optimizer, DType::F32, {1}), Error);
}

TEST_CASE("identical steps get identical addresses and no driver calls") {
  std::unique_ptr<Backend> b = make_cpu_backend();
  auto step = [&] {
    std::vector<void*> at;
    Tensor x = b->empty(Tag::Activations, DType::F32, {1000, 100});
    at.push_back(x.raw());
    for (int i = 1; i < 6; ++i) {
      Tensor y = b->empty(Tag::Activations, DType::F32, {1000, 100 * i});
      Tensor scratch = b->empty(Tag::Workspace, DType::U8, {777});
      at.push_back(y.raw());
      at.push_back(scratch.raw());
      x = y;
    }
    return at;
  };
  step();
  std::vector<void*> second = step();
  std::int64_t calls = b->cache().driver_allocations();
  for (int i = 0; i < 3; ++i) CHECK(step() == second);
  CHECK(b->cache().driver_allocations() == calls);
  b->trim();
  CHECK(b->cache().reserved_bytes() == 0);
  CHECK(b->cache().peak_reserved_bytes() > 0);
}

TEST_CASE("blocks are aligned, even empty ones") {
  for (std::int64_t n : {0, 1, 100, 1 << 20, 3 << 20}) {
    Tensor t = fast().empty(Tag::Workspace, DType::F32, {n});
    CHECK(reinterpret_cast<std::uintptr_t>(t.raw()) % 256 == 0);
    fast().fill(t, 1);
  }
}

TEST_CASE("a limit is an out-of-memory error that names what is live") {
  std::unique_ptr<Backend> b = make_cpu_backend();
  b->set_memory_limit(10 << 20);
  Tensor w = b->empty(Tag::Weights, DType::U8, {8 << 20});
  try {
    Tensor x = b->empty(Tag::Activations, DType::U8, {3 << 20});
    FAIL("no error");
  } catch (const OutOfMemoryError& e) {
    CHECK(e.code() == ExitCode::OutOfMemory);
    CHECK(std::string(e.what()).find(tag_name(Tag::Weights)) != std::string::npos);
  }
  w = {};
  CHECK_NOTHROW(b->empty(Tag::Activations, DType::U8, {9 << 20}));
}

TEST_CASE("more than the machine has is refused before it is touched") {
  std::int64_t left = fast().free_memory();
  CHECK(left > 0);
  CHECK_THROWS_AS(fast().empty(Tag::Workspace, DType::U8, {left + (std::int64_t{64} << 30)}),
                  OutOfMemoryError);
  CHECK_THROWS_AS(fast().empty(Tag::Workspace, DType::F64, {INT64_MAX / 4}), Error);
}

TEST_CASE("upload and download want whole, contiguous tensors") {
  Tensor t = fast().empty(Tag::Workspace, DType::F32, {4, 4});
  std::vector<float> x(16, 2.0f);
  fast().upload(t, x.data(), 64);
  CHECK(to_host<float>(t) == x);
  CHECK_THROWS_AS(fast().upload(t, x.data(), 60), Error);
  CHECK_THROWS_AS(fast().upload(t.slice_cols(0, 2), x.data(), 32), Error);
  CHECK_THROWS_AS(fast().download(x.data(), t.slice_cols(0, 2), 32), Error);
}

// Steps whose tensors grow and shrink together, as batches of rows of any length make them.
TEST_CASE("steps of ever new sizes keep no more than half of what they need beside it") {
  for (const bool bounded : {true, false}) {
    std::uintptr_t next = 1 << 20;
    BlockCache cache([&](std::size_t bytes) { return reinterpret_cast<void*>(next += bytes); },
                     [](void*, std::size_t) {},
                     bounded ? BlockCache::Idle::Bounded : BlockCache::Idle::Kept);
    std::mt19937 rng(1);
    std::int64_t most = 0, worst = 0;
    const auto step = [&](std::size_t rows) {
      std::vector<void*> kept;
      std::int64_t used = 0;
      for (std::size_t width : {600, 1500, 1500, 50, 600, 3000, 9000}) {
        for (int i = 0; i < 4; ++i) {
          cache.release(cache.allocate(rows * width * 16));  // for a moment
          kept.push_back(cache.allocate(rows * width * 8));
          used += static_cast<std::int64_t>(rows * width * 8);
          most = std::max(most, used + static_cast<std::int64_t>(rows * width * 8));
        }
        worst = std::max(worst, cache.reserved_bytes() - most * 3 / 2);
      }
      for (void* block : kept) cache.release(block);
    };
    for (int i = 0; i < 300; ++i) step(200 + rng() % 3000);
    // Blocks are rounded up to 64 KiB.
    CHECK((worst <= (std::int64_t{64} << 20) + most / 20) == bounded);
    step(1000), step(1000);
    const std::int64_t calls = cache.driver_allocations();
    for (int i = 0; i < 5; ++i) step(1000);
    CHECK(cache.driver_allocations() == calls);
  }
}

TEST_CASE("recordings share their memory; nobody else gets it, and nothing may be left there") {
  std::uintptr_t next = 4096;
  std::set<std::uintptr_t> freed;
  BlockCache cache(
      [&](std::size_t bytes) -> void* {
        if (next + bytes > 100 * 4096) return nullptr;
        next += bytes;
        return reinterpret_cast<void*>(next - bytes);
      },
      [&](void* block, std::size_t) { freed.insert(reinterpret_cast<std::uintptr_t>(block)); });
  cache.begin_recording();
  void* a = cache.allocate(1000);
  void* b = cache.allocate(2000);
  cache.release(b);
  cache.release(a);
  BlockCache::Blocks first = cache.end_recording();
  CHECK(first.size() == 2);
  void* other = cache.allocate(1000);
  CHECK(other != a);

  cache.begin_recording(first);  // the same sizes: no new memory
  CHECK(cache.allocate(1000) == a);
  cache.release(a);
  void* c = cache.allocate(3000);
  CHECK(c != b);
  cache.release(c);
  CHECK(cache.allocate(1 << 30) == nullptr);  // out of memory: what is recorded stays
  CHECK(freed.empty());
  BlockCache::Blocks second = cache.end_recording();
  CHECK(second.size() == 3);

  cache.begin_recording(second);
  CHECK(cache.allocate(2000) == b);
  CHECK_THROWS_AS(cache.end_recording(), Error);  // b is still in use
  cache.release(b);
  cache.release(other);
}

TEST_CASE("bytes made and looked at in parts are those of one piece") {
  for (Backend* b : {&reference(), &fast()}) {
    for (auto [units, size] : {std::pair<std::int64_t, std::size_t>{0, 4},
                               {1, 4},
                               {3, 1000},
                               {5000, 1000},
                               {3, (std::size_t{1} << 20) + 4}})
      check_parts(*b, units, size);
    check_failing_part(*b);
  }
  Tensor t = fast().empty(Tag::Workspace, DType::U8, {64, 1 << 20});
  CHECK_THROWS_AS(fast().look_at(t, 3 << 20, [](std::int64_t, std::int64_t, const std::byte*) {}),
                  Error);
}
