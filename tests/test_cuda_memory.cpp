// The CUDA backend's memory: copies, reuse without driver calls, running out, and opening devices.
#include "parity.h"
#include "parts_check.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("open_device opens a CPU everywhere and refuses what is not there") {
  CHECK(open_device("cpu")->name() == "cpu");
  CHECK((open_device("auto")->name() == "cpu") == (n_gpus() == 0));
  CHECK_THROWS_AS(open_device("cuda:1000"), UsageError);
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:0x", "cuda:99999999999", "CPU"})
    CHECK_THROWS_AS(open_device(name), UsageError);
  for (const char* first : {"cuda", "cuda:0"}) {
    if (n_gpus() == 0)
      CHECK_THROWS_AS(open_device(first), UsageError);
    else
      CHECK(open_device(first)->name() == "cuda:0");
  }
}

TEST_CASE("cuda: the backend describes itself") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  CHECK(b->name() == "cuda:0");
  CHECK(b->name() != "cpu");
  CHECK(b->description().find("compute capability") != std::string::npos);
  CHECK(b->free_memory() > 0);
  MESSAGE(b->description());
}

TEST_CASE("cuda: copies of every size come back unchanged") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  const std::int64_t staging = std::int64_t{4} << 20;
  for (std::int64_t n : {std::int64_t{0}, std::int64_t{1}, std::int64_t{4097}, staging - 1, staging,
                         staging + 1, 5 * staging + 12345}) {
    std::vector<std::uint8_t> out(static_cast<std::size_t>(n)),
        back(static_cast<std::size_t>(n), 7);
    std::mt19937 rng(static_cast<unsigned>(n));
    for (auto& x : out) x = static_cast<std::uint8_t>(rng());
    Tensor t = b->empty(Tag::Workspace, DType::U8, {n});
    b->upload(t, out.data(), out.size());
    b->download(back.data(), t, back.size());
    CHECK(out == back);
  }
  Tensor t = b->empty(Tag::Workspace, DType::F32, {4, 4});
  std::vector<float> x(16);
  CHECK_THROWS_AS(b->upload(t, x.data(), 60), Error);
  CHECK_THROWS_AS(b->download(x.data(), t.slice_cols(0, 2), 32), Error);
}

TEST_CASE("cuda: bytes made in parts arrive, and are looked at, by many threads") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  for (auto [units, size] : {std::pair<std::int64_t, std::size_t>{0, 4},
                             {1, 4},
                             {3, 1000},
                             {300'000, 1000},  // each thread's buffers are filled many times
                             {5, (std::size_t{3} << 20) + 4}})
    check_parts(*b, units, size);
  check_failing_part(*b);
}

TEST_CASE("cuda: read_later gives the value of its moment, whatever happens to the tensor after") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  Tensor x = b->empty(Tag::Workspace, DType::F32, {1});
  std::vector<std::unique_ptr<Readback>> values;
  for (int i = 0; i < 10; ++i) {
    b->fill(x, i + 0.5);
    values.push_back(b->read_later(x));
  }
  b->fill(x, -1);
  x = Tensor();
  values.erase(values.begin() + 3);  // not requested
  for (int i = 0; i < 9; ++i)
    CHECK(values[static_cast<std::size_t>(i)]->value() == i + (i < 3 ? 0 : 1) + 0.5);
  CHECK(values.back()->done());
  x = b->empty(Tag::Workspace, DType::F32, {300});
  const auto many = b->read_later(x.slice_rows(3, 300));
  CHECK_THROWS_AS(many->value(297), Error);
  b->fill(x, 7);
  const auto sevens = b->read_later(x);
  CHECK(sevens->value(299) == 7);
  CHECK_THROWS_AS(b->read_later(b->empty(Tag::Workspace, DType::BF16, {2})), Error);
}

TEST_CASE("cuda: an upload's source may change at once, and uploads don't overtake each other") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  std::vector<Tensor> tensors;
  std::vector<float> values(300000);
  for (int i = 0; i < 20; ++i) {
    std::fill(values.begin(), values.end(), static_cast<float>(i));
    tensors.push_back(b->empty(Tag::Workspace, DType::F32, {300000}));
    b->upload(tensors.back(), values.data(), values.size() * sizeof(float));
  }
  for (int i = 0; i < 20; ++i)
    CHECK(to_host<float>(tensors[static_cast<std::size_t>(i)]) ==
          std::vector<float>(300000, static_cast<float>(i)));
}

TEST_CASE("cuda: equal steps get equal addresses, and the driver is not asked after the second") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  auto step = [&] {
    std::vector<void*> addresses;
    Tensor x = random_tensor(*b, DType::BF16, {128, 256}, 1),
           w = random_tensor(*b, DType::BF16, {64, 256}, 2);
    Tensor y = b->empty(Tag::Activations, DType::BF16, {128, 64});
    Tensor dw = b->empty(Tag::Backward, DType::F32, {64, 256});
    b->matmul_nt(y, GradMode::Write, 1.0, x, w);
    b->weight_gradient(dw, GradMode::Write, 1.0, y, x);
    Tensor total = b->empty(Tag::Workspace, DType::F32, {1});
    std::vector<Tensor> all = {dw};
    b->sum_squares(total, all);
    for (const Tensor& t : {x, w, y, dw, total}) addresses.push_back(t.raw());
    double norm = to_host<float>(total)[0];
    CHECK(std::isfinite(norm));
    return std::pair{addresses, norm};
  };
  step();
  auto second = step();
  std::int64_t driver = b->cache().driver_allocations();
  for (int i = 0; i < 5; ++i) CHECK(step() == second);
  CHECK(b->cache().driver_allocations() == driver);
}

TEST_CASE("cuda: out of memory is an error that leaves the backend usable") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  std::int64_t too_much = b->free_memory() * 2;
  CHECK_THROWS_AS(b->empty(Tag::Workspace, DType::U8, {too_much}), OutOfMemoryError);
  CHECK(b->ledger().total().live_bytes == 0);
  Tensor x = random_tensor(*b, DType::F32, {1000}, 1);
  b->add(x, x, x);
  CHECK(to_host_f64(x).size() == 1000);
  b->set_memory_limit(1 << 20);
  CHECK_THROWS_AS(b->empty(Tag::Workspace, DType::U8, {2 << 20}), OutOfMemoryError);
}

TEST_CASE("cuda: memory goes back to the driver") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  std::int64_t before = b->free_memory();
  { Tensor x = b->empty(Tag::Workspace, DType::U8, {std::int64_t{256} << 20}); }
  CHECK(b->cache().reserved_bytes() >= std::int64_t{256} << 20);
  CHECK(b->free_memory() >= before - (std::int64_t{64} << 20));  // cached memory is still available
  b->trim();
  CHECK(b->cache().reserved_bytes() == 0);
}

TEST_CASE("cuda: a tensor of more than 2^31 elements") {
  LK_NEEDS_GPU();
  auto b = open_device("cuda:0");
  std::int64_t n = (std::int64_t{1} << 31) + 4096;
  if (b->free_memory() < 3 * n) LK_SKIP("less GPU memory than this test needs");
  Tensor x = b->empty(Tag::Workspace, DType::BF16, {n});
  b->fill(x, 1.0);
  Tensor last = x.slice_rows(n - 4096, n);
  b->add(x, x, x);
  for (double v : to_host_f64(last)) REQUIRE(v == 2.0);
  Tensor rows = x.reshape({n / 4096, 4096}),
         index = to_device(*b, Tag::Workspace,
                           std::vector<std::int32_t>{static_cast<std::int32_t>(n / 4096 - 1)});
  Tensor y = b->empty(Tag::Workspace, DType::BF16, {1, 4096});
  b->gather_rows(y, rows, index);
  for (double v : to_host_f64(y)) REQUIRE(v == 2.0);
}

TEST_CASE("cuda: two backends on one GPU, and other dtypes are refused by name") {
  LK_NEEDS_GPU();
  auto a = open_device("cuda:0"), b = open_device("cuda:0");
  Tensor x = random_tensor(*a, DType::F32, {64, 64}, 1),
         y = random_tensor(*b, DType::F32, {64, 64}, 1);
  a->add(x, x, x);
  b->add(y, y, y);
  CHECK(to_host_f64(x) == to_host_f64(y));
  Tensor d = a->empty(Tag::Workspace, DType::F64, {8, 8});
  CHECK_THROWS_AS(a->add(d, d, d), Error);
  CHECK_THROWS_AS(a->matmul_nn(d, GradMode::Write, 1.0, d, d), Error);
}
