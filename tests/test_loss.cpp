// Cross-entropy and sums against doubles.
#include <omp.h>

#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

namespace {

void check_cross_entropy(const Subject& s) {
  for (auto [n, V] :
       {std::pair<std::int64_t, std::int64_t>{0, 5}, {1, 1}, {4, 7}, {9, 1000}, {3, 49152}})
    for (auto [size, smoothing] :
         {std::pair{1.0, 0.0}, {20.0, 0.0}, {300.0, 0.0}, {20.0, 0.1}, {1.0, 0.9}}) {
      std::vector<std::int32_t> at;
      for (std::int64_t i = 0; i < n; ++i)
        at.push_back(static_cast<std::int32_t>((i * 131 + V - 1) % V));
      const DType stat = stat_dtype(s.dtype);
      Tensor logits = padded(s.backend, s.dtype, n, V, 3, 1, size), logits64 = as_f64(logits);
      Tensor losses = s.backend.empty(Tag::Workspace, stat, {n}),
             losses64 = reference().empty(Tag::Workspace, DType::F64, {n});
      Tensor targets = to_device(s.backend, Tag::Workspace, at),
             targets64 = to_device(reference(), Tag::Workspace, at);
      std::vector<double> before = values(logits);
      s.backend.cross_entropy(losses, logits, targets, false, 0, {}, smoothing);
      CHECK(values(logits) == before);
      std::vector<double> forward_only = values(losses);
      s.backend.cross_entropy(losses, logits, targets, true, 0.25, {}, smoothing);
      CHECK(values(losses) == forward_only);
      reference().cross_entropy(losses64, logits64, targets64, true, 0.25, {}, smoothing);
      // x - max is rounded, |x - max| <= 12 size or so: exp of it is off by that rounding, and a
      // plain running sum of V floats by up to sqrt(V) u at 5 sigma.
      const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
      const double slack = u * (12 * size + 5 * std::sqrt(static_cast<double>(V)) + 16);
      const std::string what =
          concat(s.name, " n ", n, " V ", V, " size ", size, " smoothing ", smoothing);
      check_close(values(losses), values(losses64), 2 * u, {slack}, what + " loss");
      std::vector<double> want = values(logits64);
      check_close(values(logits), want, unit_roundoff(s.dtype), {0.25 * 2 * slack},
                  what + " gradient");
      CHECK(padding_intact(logits));
    }
}

}  // namespace

TEST_CASE("cross-entropy agrees with the F64 twin") {
  for (const Subject& s : subjects()) check_cross_entropy(s);
  WithoutBf16Tile without;
  check_cross_entropy({"bf16 without its arithmetic", fast(), DType::BF16});
}

// (1 - E) L(target) + E mean over all tokens j of L(j), and the same mix of their gradients.
TEST_CASE("smoothed cross-entropy is the mix of plain ones that defines it") {
  constexpr std::int64_t V = 7;
  constexpr double E = 0.3;
  for (std::int32_t target : {0, 3, 6}) {
    auto run = [&](std::int32_t at, double smoothing) {
      Tensor logits = random_tensor(reference(), DType::F64, {1, V}, 1),
             losses = reference().empty(Tag::Workspace, DType::F64, {1});
      reference().cross_entropy(losses, logits,
                                to_device(reference(), Tag::Workspace, std::vector{at}), true, 0.5,
                                {}, smoothing);
      std::vector<double> all = values(logits);
      all.push_back(values(losses)[0]);
      return all;
    };
    std::vector<double> want = run(target, 0);
    for (double& x : want) x *= 1 - E;
    for (std::int32_t j = 0; j < V; ++j) {
      const std::vector<double> one = run(j, 0);
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += E / V * one[i];
    }
    check_close(run(target, E), want, 0, {0x1p-48}, concat("target ", target));
  }
  for (double bad : {-0.1, 1.0, std::nan("")}) {
    Tensor logits = random_tensor(reference(), DType::F64, {1, V}, 1);
    CHECK_THROWS_AS(
        reference().cross_entropy(
            reference().empty(Tag::Workspace, DType::F64, {1}), logits,
            to_device(reference(), Tag::Workspace, std::vector<std::int32_t>{1}), true, 1, {}, bad),
        Error);
  }
}

TEST_CASE("targets outside the vocabulary are refused") {
  for (const Subject& s : subjects())
    for (std::int32_t target : {-1, 7}) {
      Tensor logits = random_tensor(s.backend, s.dtype, {1, 7}, 1),
             losses = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {1});
      CHECK_THROWS_AS(
          s.backend.cross_entropy(
              losses, logits,
              to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{target}), true, 1),
          Error);
    }
}

TEST_CASE("a row without a target has loss and gradient 0, and changes no other") {
  const std::vector<std::int32_t> all{3, 0, 6, 2}, some{3, kNoTarget, 6, kNoTarget};
  for (const Subject& s : subjects()) {
    auto run = [&](const std::vector<std::int32_t>& at, bool gradient) {
      Tensor logits = random_tensor(s.backend, s.dtype, {4, 7}, 1),
             losses = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {4});
      s.backend.cross_entropy(losses, logits, to_device(s.backend, Tag::Workspace, at), gradient,
                              0.5);
      return std::pair(values(losses), values(logits));
    };
    auto [want, want_dx] = run(all, true);
    auto [losses, dx] = run(some, true);
    for (std::size_t i = 0; i < 4; ++i) {
      const bool counts = i % 2 == 0;
      CHECK(losses[i] == (counts ? want[i] : 0.0));
      for (std::size_t j = 0; j < 7; ++j)
        CHECK(dx[7 * i + j] == (counts ? want_dx[7 * i + j] : 0.0));
    }
    auto [forward_only, logits] = run(some, false);
    CHECK(forward_only == losses);
    CHECK(logits == values(random_tensor(s.backend, s.dtype, {4, 7}, 1)));
  }
}

TEST_CASE("a factor on the device scales the gradient as the number does") {
  for (const Subject& s : subjects()) {
    Tensor targets = to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{3, 1});
    auto run = [&](double scale, const Tensor& factor) {
      Tensor logits = random_tensor(s.backend, s.dtype, {2, 7}, 1),
             losses = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {2});
      s.backend.cross_entropy(losses, logits, targets, true, scale, factor);
      std::vector<double> all = values(losses), dx = values(logits);
      all.insert(all.end(), dx.begin(), dx.end());
      return all;
    };
    const double third = stat_dtype(s.dtype) == DType::F64 ? 1.0 / 3 : float(1.0 / 3);
    Tensor factor = tensor_from(s.backend, stat_dtype(s.dtype), {1}, {third});
    CHECK(run(1.0, factor) == run(third, {}));
    CHECK(run(2.0, factor) == run(2 * third, {}));
  }
}

TEST_CASE("a NaN logit makes the loss NaN, not wrong") {
  for (const Subject& s : subjects()) {
    Tensor logits = tensor_from(s.backend, s.dtype, {1, 3}, {1, std::nan(""), 2}),
           losses = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {1});
    s.backend.cross_entropy(losses, logits,
                            to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{0}),
                            false, 1);
    CHECK(std::isnan(values(losses)[0]));
  }
}

TEST_CASE("sum writes and adds") {
  for (Backend* b : {&reference(), &fast()})
    for (DType dtype : {DType::F32, DType::F64})
      for (std::int64_t n : {0, 1, 5, 100000}) {
        Tensor x = random_tensor(*b, dtype, {n}, 1), out = tensor_from(*b, dtype, {1}, {3.0});
        double want = 0;
        for (double v : values(x)) want += v;
        const double u = unit_roundoff(dtype), slack = 0x1p-53 * static_cast<double>(n) + 1e-300;
        b->sum(out, GradMode::Add, 2.0, x);
        check_close(values(out), {3 + 2 * want}, 2 * u, {slack + 4 * u}, "sum add");
        b->sum(out, GradMode::Write, 0.5, x);
        check_close(values(out), {0.5 * want}, 2 * u, {slack}, "sum write");
      }
}

TEST_CASE("losses do not depend on the number of threads") {
  const int threads = omp_get_max_threads();
  Tensor targets = to_device(fast(), Tag::Workspace, std::vector<std::int32_t>(40, 1));
  std::vector<double> want;
  for (int n : {threads, 1, 3}) {
    omp_set_num_threads(n);
    Tensor logits = random_tensor(fast(), DType::F32, {40, 3000}, 1),
           losses = fast().empty(Tag::Workspace, DType::F32, {40});
    fast().cross_entropy(losses, logits, targets, true, 1);
    std::vector<double> got = values(losses), more = values(logits);
    got.insert(got.end(), more.begin(), more.end());
    if (want.empty()) want = got;
    CHECK(got == want);
  }
  omp_set_num_threads(threads);
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  const Weight head = frozen({7, 4}, 100), narrow = frozen({1, 4}, 101);
  Tensor targets = ints({6, 0, 3, 3, 1}), one = ints({5}), zero = ints({0, 0});
  for (std::int64_t chunk : {1, 2, 5, 100})
    out.push_back(
        {concat("head_loss in chunks of ", chunk),
         [=](Tape& t, const Vars& in) { return head_loss(t, in[0], head, targets, 0.37, chunk); },
         {rnd({5, 4}, 102)}});
  Tensor some = ints({6, kNoTarget, 3, kNoTarget, 1});
  Tensor factor = tensor_from(reference(), DType::F64, {1}, {0.6});
  out.push_back({"head_loss with a factor, and rows that count for nothing",
                 [=](Tape& t, const Vars& in) {
                   return head_loss(t, in[0], head, some, {0.37, factor}, 2);
                 },
                 {rnd({5, 4}, 102)}});
  out.push_back({"head_loss with smoothed targets",
                 [=](Tape& t, const Vars& in) {
                   return head_loss(t, in[0], head, some, {0.37, factor, 0.2}, 2);
                 },
                 {rnd({5, 4}, 105)}});
  // sum of sin(x) * weight, which depends on the place: a transposed gradient would be found.
  out.push_back({"host_loss",
                 [](Tape& t, const Vars& in) {
                   return host_loss(t, in[0], [](std::span<const double> x, std::span<double> g) {
                     double sum = 0;
                     for (std::size_t i = 0; i < x.size(); ++i) {
                       const double weight = 0.1 * static_cast<double>(i + 1);
                       sum += weight * std::sin(x[i]);
                       g[i] = weight * std::cos(x[i]);
                     }
                     return sum;
                   });
                 },
                 {rnd({3, 5}, 171)}});
  out.push_back({"head_loss of one row",
                 [=](Tape& t, const Vars& in) { return head_loss(t, in[0], head, one, 1.0, 8); },
                 {rnd({1, 4}, 103)}});
  out.push_back({"head_loss with a vocabulary of one: always zero",
                 [=](Tape& t, const Vars& in) { return head_loss(t, in[0], narrow, zero, 1.0, 8); },
                 {rnd({2, 4}, 104)}});
});

}  // namespace
