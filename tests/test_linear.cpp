// Matrix products against the plain F64 twin. The bound is derived: each product of K terms is off
// by at most 4 * 2^-24 * sum |a||b| and is rounded once to its dtype; with Add the sum is rounded
// too.
#include <omp.h>

#include <cstring>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/few_rows.h"
#include "cpu/fast/onednn_linear.h"
#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

namespace {

enum class Product { NT, NN, TN };

void product(Product op, const Tensor& c, GradMode mode, double alpha, const Tensor& a,
             const Tensor& b) {
  if (op == Product::NT) c.backend().matmul_nt(c, mode, alpha, a, b);
  if (op == Product::NN) c.backend().matmul_nn(c, mode, alpha, a, b);
  if (op == Product::TN) c.backend().weight_gradient(c, mode, alpha, a, b);
}

Tensor absolute(const Tensor& x) {
  std::vector<double> v = values(x);
  for (double& e : v) e = std::abs(e);
  return tensor_from(reference(), DType::F64, x.shape(), v);
}

// c (M,N) = alpha op(a, b) with K contracted, all three with padded rows.
void check_product(const Subject& s, Product op, std::int64_t M, std::int64_t N, std::int64_t K,
                   GradMode mode, double alpha) {
  DType out = op == Product::TN ? stat_dtype(s.dtype) : s.dtype;
  Tensor a = op == Product::TN ? padded(s.backend, s.dtype, K, M, 3, 1)
                               : padded(s.backend, s.dtype, M, K, 3, 1);
  Tensor b = op == Product::NT ? padded(s.backend, s.dtype, N, K, 5, 2)
                               : padded(s.backend, s.dtype, K, N, 5, 2);
  Tensor c = padded(s.backend, out, M, N, 7, 3);
  Tensor want = as_f64(c), size = as_f64(c);
  std::vector<double> before = values(c);
  product(op, want, mode, alpha, as_f64(a), as_f64(b));
  product(op, size, GradMode::Write, std::abs(alpha), absolute(a), absolute(b));
  product(op, c, mode, alpha, a, b);
  std::vector<double> slack = values(size);
  double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
  for (std::size_t i = 0; i < slack.size(); ++i)
    slack[i] = 5 * std::sqrt(static_cast<double>(K + 1)) * u *
                   (slack[i] + (mode == GradMode::Add ? std::abs(before[i]) : 0)) +
               1e-300;
  check_close(values(c), values(want), unit_roundoff(out), slack,
              concat(s.name, " product ", static_cast<int>(op), " M ", M, " N ", N, " K ", K));
  CHECK(padding_intact(c));
}

}  // namespace

namespace {

void check_products(const Subject& s) {
  const std::int64_t shapes[][3] = {
      {1, 1, 1},     {3, 5, 7},    {17, 33, 9},   {8, 40, 64},  {40, 8, 64},    {97, 16, 31},
      {100, 24, 50}, {5, 130, 70}, {1, 300, 64},  {16, 50, 20}, {12, 3, 2100},  {130, 19, 4097},
      {6, 16, 8},    {2, 9, 1},    {193, 150, 8}, {64, 64, 64}, {1100, 10, 12}, {10, 1100, 12},
  };
  for (auto [M, N, K] : shapes)
    for (Product op : {Product::NT, Product::NN, Product::TN}) {
      check_product(s, op, M, N, K, GradMode::Write, 1.0);
      check_product(s, op, M, N, K, GradMode::Add, -0.75);
    }
}

void check_many_blocks(const Subject& s) {
  check_product(s, Product::NT, 33, 3000, 600, GradMode::Write, 1.0);
  check_product(s, Product::NN, 33, 3000, 600, GradMode::Add, 0.5);
  check_product(s, Product::TN, 20, 2500, 700, GradMode::Add, 2.0);
  check_product(s, Product::TN, 200, 250, 300, GradMode::Write, 1.0);
  check_product(s, Product::NN, 70, 523, 2300, GradMode::Add, -0.75);
  check_product(s, Product::NN, 5, 37, 33000, GradMode::Add,
                0.5);  // K in blocks, each for one core
  check_product(s, Product::NT, 20, 37, 33000, GradMode::Write, 1.0);
}

}  // namespace

TEST_CASE("products agree with the F64 twin") {
  for (const Subject& s : subjects()) check_products(s);
}

TEST_CASE("products of many blocks of columns") {
  check_many_blocks({"fast f32", fast(), DType::F32});
  check_many_blocks({"fast bf16", fast(), DType::BF16});
}

TEST_CASE("products agree with the F64 twin on processors without bf16 arithmetic") {
  WithoutBf16Tile widening;
  check_products({"widening bf16", fast(), DType::BF16});
  check_many_blocks({"widening bf16", fast(), DType::BF16});
}

TEST_CASE("empty products") {
  for (const Subject& s : subjects()) {
    Tensor none = s.backend.empty(Tag::Workspace, s.dtype, {0, 8});
    Tensor b = random_tensor(s.backend, s.dtype, {5, 8}, 1);
    Tensor c = s.backend.empty(Tag::Workspace, s.dtype, {0, 5});
    s.backend.matmul_nt(c, GradMode::Write, 1.0, none, b);
    // Nothing to sum over: Write gives zeros, Add leaves everything.
    Tensor dw = random_tensor(s.backend, stat_dtype(s.dtype), {8, 8}, 2);
    std::vector<double> before = values(dw);
    s.backend.weight_gradient(dw, GradMode::Add, 1.0, none, none);
    CHECK(values(dw) == before);
    s.backend.weight_gradient(dw, GradMode::Write, 1.0, none, none);
    CHECK(values(dw) == std::vector<double>(64, 0.0));
  }
}

TEST_CASE("frozen weights: forward and backward agree with the F64 twin") {
  for (const Subject& s : subjects())
    for (std::int64_t T : {1, 7, 50}) {
      const std::int64_t N = 70, K = 45;
      Weight w("w", random_tensor(s.backend, s.dtype, {N, K}, 1));
      s.backend.prepare_linear(w);
      Weight w64("w", as_f64(w.values()));
      Tensor x = padded(s.backend, s.dtype, T, K, 2, 2), y = padded(s.backend, s.dtype, T, N, 4, 3);
      Tensor want = as_f64(y);
      s.backend.linear_forward(y, x, w);
      reference().linear_forward(want, as_f64(x), w64);
      double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
      check_close(values(y), values(want), unit_roundoff(s.dtype), {16 * u * 45}, "linear_forward");
      CHECK(padding_intact(y));
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        Tensor dx = padded(s.backend, s.dtype, T, K, 2, 4);
        Tensor want_dx = as_f64(dx);
        s.backend.linear_backward_x(dx, mode, y, w);
        reference().linear_backward_x(want_dx, mode, as_f64(y), w64);
        check_close(values(dx), values(want_dx), unit_roundoff(s.dtype), {4 * u * 7 * 70 * 4},
                    "linear_backward_x");
        CHECK(padding_intact(dx));
      }
    }
}

TEST_CASE("adding a product with zeros leaves every bit") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    const std::int64_t T = 37, N = 50, R = 8;
    Tensor c = random_tensor(fast(), dtype, {T, N}, 1);
    Tensor s = random_tensor(fast(), dtype, {T, R}, 2);
    Tensor b = fast().empty(Tag::Workspace, dtype, {N, R});
    fast().fill(b, 0);
    std::vector<std::byte> before(c.bytes()), after(c.bytes());
    fast().download(before.data(), c, c.bytes());
    fast().matmul_nt(c, GradMode::Add, 2.0, s, b);
    fast().download(after.data(), c, c.bytes());
    CHECK(before == after);
  }
}

TEST_CASE("products do not depend on threads, nor rows on their neighbours") {
  const int threads = omp_get_max_threads();
  for (DType dtype : {DType::F32, DType::BF16}) {
    Tensor a = random_tensor(fast(), dtype, {300, 700}, 1);
    Tensor b = random_tensor(fast(), dtype, {90, 700}, 2);
    Tensor c = fast().empty(Tag::Workspace, dtype, {300, 90});
    fast().matmul_nt(c, GradMode::Write, 1.0, a, b);
    std::vector<double> want = values(c);
    for (int n : {1, 2, 3, 5}) {
      omp_set_num_threads(n);
      fast().matmul_nt(c, GradMode::Write, 1.0, a, b);
      CHECK(values(c) == want);
    }
    omp_set_num_threads(threads);
    Tensor one = fast().empty(Tag::Workspace, dtype, {1, 90});
    fast().matmul_nt(one, GradMode::Write, 1.0, a.slice_rows(123, 124), b);
    CHECK(values(one) == values(c.slice_rows(123, 124)));
  }
}

namespace {

// The first rows of a product, alone and with others, on other numbers of threads.
void check_rows(DType dtype, Product op, std::int64_t N, std::int64_t K) {
  const int threads = omp_get_max_threads();
  const Tensor a = random_tensor(fast(), dtype, {300, K}, 1);
  const Tensor b = random_tensor(fast(), dtype, op == Product::NT ? Shape{N, K} : Shape{K, N}, 2);
  const auto rows = [&](std::int64_t M) {
    Tensor c = random_tensor(fast(), dtype, {M, N}, 3).slice_rows(0, M);
    product(op, c, GradMode::Write, 1.0, a.slice_rows(0, M), b);
    return values(c);
  };
  const std::vector<double> all = rows(300);
  for (std::int64_t M : {1, 17, 96, 150, 256, 257})
    for (int n : {1, 3, 9}) {
      omp_set_num_threads(n);
      const std::vector<double> some = rows(M);
      CHECK(std::equal(some.begin(), some.end(), all.begin()));
    }
  omp_set_num_threads(threads);
}

}  // namespace

TEST_CASE("a row of a short product has the bits that it has among many") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    check_rows(dtype, Product::NT, 531, 700);
    check_rows(dtype, Product::NN, 531, 2500);
    check_rows(dtype, Product::NN, 40, 33000);
  }
  WithoutBf16Tile widening;
  check_rows(DType::BF16, Product::NT, 531, 700);
  check_rows(DType::BF16, Product::NN, 40, 33000);
}

namespace {

void check_onednn(DType dtype) {
  CpuBackend native(CpuMode::Fast, CpuBackend::Products::Onednn);
  CpuBackend tiles(CpuMode::Fast, CpuBackend::Products::Tiles);
  for (auto [T, N, K] : {std::array<std::int64_t, 3>{1, 70, 45},
                         {5, 45, 70},
                         {37, 64, 64},
                         {512, 192, 576},
                         {43, 73, 63},  // note [Sums one short] in cpu/fast/onednn_linear.cpp
                         {57, 63, 19},
                         {57, 9, 2847},
                         {135, 21, 63},
                         {0, 8, 8}})
    for (std::int64_t pad : {0, 8}) {
      Weight w("w", random_tensor(native, dtype, {N, K}, 1)),
          plain("w", random_tensor(tiles, dtype, {N, K}, 1));
      native.prepare_linear(w);
      tiles.prepare_linear(plain);
      CHECK(w.packed() != nullptr);
      CHECK(plain.packed() == nullptr);
      Weight w64("w", as_f64(w.values()));
      Tensor x = padded(native, dtype, T, K, pad, 2), y = padded(native, dtype, T, N, pad, 3);
      Tensor want = as_f64(y);
      native.linear_forward(y, x, w);
      reference().linear_forward(want, as_f64(x), w64);
      auto slack = [](std::int64_t terms) {
        return 5 * 0x1p-24 * static_cast<double>(terms) * std::sqrt(static_cast<double>(terms));
      };
      check_close(values(y), values(want), unit_roundoff(dtype), {slack(K)}, "forward");
      CHECK(padding_intact(y));
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        Tensor dy = padded(native, dtype, T, N, pad, 5), dx = padded(native, dtype, T, K, pad, 4);
        Tensor want_dx = as_f64(dx);
        native.linear_backward_x(dx, mode, dy, w);
        reference().linear_backward_x(want_dx, mode, as_f64(dy), w64);
        check_close(values(dx), values(want_dx), unit_roundoff(dtype), {slack(N)}, "backward");
        CHECK(padding_intact(dx));
      }
    }
}

}  // namespace

TEST_CASE("products of up to 8 rows agree with the F64 twin, and a row's bits do not depend on M") {
  const std::int64_t N = 70;
  for (DType dtype : {DType::F32, DType::BF16})
    for (std::int64_t K : {1, 15, 16, 45, 576}) {
      Tensor w = padded(fast(), dtype, N, K, 3, 1), x = padded(fast(), dtype, 8, K, 3, 2);
      Tensor all = padded(fast(), dtype, 8, N, 3, 3), want = as_f64(all);
      cpu::linear_few_rows(all, x, w);
      reference().linear_forward(want, as_f64(x), Weight("w", as_f64(w)));
      const double slack = 2 * 0x1p-24 * static_cast<double>(K);
      check_close(values(all), values(want), unit_roundoff(dtype), {slack}, concat("K ", K));
      CHECK(padding_intact(all));
      for (std::int64_t M = 1; M < 8; ++M) {
        Tensor some = fast().empty(Tag::Workspace, dtype, {M, N});
        cpu::linear_few_rows(some, x.slice_rows(8 - M, 8), w);
        CHECK(values(some) == values(all.slice_rows(8 - M, 8)));
      }
    }
}

TEST_CASE("oneDNN's products agree with the F64 twin: f32") { check_onednn(DType::F32); }

TEST_CASE("oneDNN's products agree with the F64 twin: bf16") {
  if (!cpu::prefers_onednn(DType::BF16)) LK_SKIP("this processor has no bf16 arithmetic");
  check_onednn(DType::BF16);
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  const Weight w = frozen({6, 7}, 1), bias = frozen({6}, 2), one = frozen({1, 1}, 3);
  out.push_back({"frozen linear with bias",
                 [=](Tape& t, const Vars& in) { return linear(t, in[0], w, &bias); },
                 {rnd({5, 7}, 4)}});
  out.push_back({"frozen linear 1 x 1 x 1",
                 [=](Tape& t, const Vars& in) { return linear(t, in[0], one); },
                 {rnd({1, 1}, 5)}});
  out.push_back({"frozen linear, no rows",  // and a second input that does have elements
                 [=](Tape& t, const Vars& in) {
                   linear(t, in[1], w);
                   return linear(t, in[0], w);
                 },
                 {rnd({3, 7}, 6), rnd({0, 7}, 7)}});
  Parameter &p = trainable({3, 7}, 8), &scalar = trainable({1, 1}, 9);
  out.push_back({"trainable linear, alpha",
                 [&](Tape& t, const Vars& in) { return linear(t, in[0], p, -1.7); },
                 {rnd({5, 7}, 10)},
                 {&p}});
  out.push_back({"trainable linear 1 x 1 x 1",
                 [&](Tape& t, const Vars& in) { return linear(t, in[0], scalar); },
                 {rnd({1, 1}, 11)},
                 {&scalar}});
  Parameter &a = trainable({2, 5}, 12), &b = trainable({5, 2}, 13);
  out.push_back({"one parameter used twice, of a constant and of itself",
                 [&](Tape& t, const Vars& in) {
                   Var s = linear(t, in[0], a);
                   return add(t, linear(t, linear(t, s, b), a), s);
                 },
                 {rnd({3, 5}, 14)},
                 {&a, &b}});
});

}  // namespace
