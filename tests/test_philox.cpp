// The generator's bits are part of the file format of a run: they may never change.
#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("philox gives the published bits") {
  // Known answers of the Random123 library's kat_vectors for philox4x32-10.
  Philox4 zero = philox(0, 0, 0);
  CHECK(zero.v[0] == 0x6627e8d5u);
  CHECK(zero.v[1] == 0xe169c58du);
  CHECK(zero.v[2] == 0xbc57ac4cu);
  CHECK(zero.v[3] == 0x9b00dbd8u);
  Philox4 ones = philox(~0ull, ~0ull, ~0ull);
  CHECK(ones.v[0] == 0x408f276du);
  CHECK(ones.v[1] == 0x41c83b0eu);
  CHECK(ones.v[2] == 0xa20bc7c6u);
  CHECK(ones.v[3] == 0x6d5451fdu);
  Philox4 pi = philox(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull);
  CHECK(pi.v[0] == 0xd16cfe09u);
  CHECK(pi.v[1] == 0x94fdccebu);
  CHECK(pi.v[2] == 0x5001e420u);
  CHECK(pi.v[3] == 0x24126ea1u);
}

TEST_CASE("uniform draws lie in [0, 1) with mean one half") {
  CHECK(philox_uniform(0) == 0.0f);
  CHECK(philox_uniform(~0u) < 1.0f);
  double sum = 0;
  const int n = 1 << 14;
  for (int i = 0; i < n; ++i) {
    Philox4 r = philox_at({7, 3, 1}, static_cast<std::uint64_t>(i));
    for (std::uint32_t x : r.v) sum += philox_uniform(x);
  }
  // The mean of 4 n uniforms has standard deviation 1 / sqrt(12 * 4 n).
  CHECK(std::abs(sum / (4 * n) - 0.5) < 5 / std::sqrt(12.0 * 4 * n));
}

TEST_CASE("streams differ in seed, step and site") {
  Philox4 a = philox_at({1, 1, 1}, 0);
  for (RandomKey key : {RandomKey{2, 1, 1}, RandomKey{1, 2, 1}, RandomKey{1, 1, 2}}) {
    Philox4 b = philox_at(key, 0);
    CHECK((a.v[0] != b.v[0] || a.v[1] != b.v[1]));
  }
}

TEST_CASE("dropout draws element i from its place alone") {
  const RandomKey key{42, 5, 9};
  const float p = 0.3f;
  for (const Subject& s : subjects())
    for (auto [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{7, 13}, {3, 5000}, {1, 1}, {2, 9000}}) {
      Tensor x = padded(s.backend, s.dtype, rows, cols, 3, 1u);
      Tensor y = padded(s.backend, s.dtype, rows, cols, 6, 2u);
      s.backend.dropout(y, GradMode::Write, x, p, key);
      std::vector<double> in = values(x), out = values(y);
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < in.size(); ++i) {
        bool keep = dropout_keeps(key, i, dropout_threshold(p));
        double want = keep ? in[i] / (1 - static_cast<double>(p)) : 0.0;
        // 1 - p, its reciprocal and the product are rounded: three roundings, and one to the dtype.
        if (std::abs(out[i] - want) > (3 * 0x1p-24 + unit_roundoff(s.dtype)) * std::abs(want))
          ++wrong;
      }
      CHECK(wrong == 0);
      CHECK(padding_intact(y));
    }
}

TEST_CASE("dropout keeps its share, each element apart from its neighbours") {
  const std::uint64_t n = 1 << 16;
  for (float p : {0.05f, 0.5f, 0.9f}) {
    const std::uint32_t threshold = dropout_threshold(p);
    CHECK(std::abs(threshold / 65536.0 - p) <= 0x1p-17);
    double kept = 0, both = 0;
    for (std::uint64_t i = 0; i < n; ++i) {
      const bool keep = dropout_keeps({8, 1, 3}, i, threshold);
      kept += keep;
      both += keep && dropout_keeps({8, 1, 3}, i + 1, threshold);
    }
    // Five standard deviations of a sum of n; neighbouring pairs overlap, hence the factor.
    const double q = 1.0 - p, spread = 5 / std::sqrt(static_cast<double>(n));
    CHECK(std::abs(kept / n - q) < spread * std::sqrt(q * p));
    CHECK(std::abs(both / n - q * q) < 2 * spread * std::sqrt(q * q * (1 - q * q)));
  }
}

TEST_CASE("a key may take its step from memory") {
  const std::int32_t first = 30;
  const RandomKey by_memory{6, 4, 2, &first}, plain{6, 34, 2};
  for (const Subject& s : subjects()) {
    Tensor x = padded(s.backend, s.dtype, 9, 13, 0, 1u),
           y = padded(s.backend, s.dtype, 9, 13, 0, 2u),
           z = padded(s.backend, s.dtype, 9, 13, 0, 2u);
    s.backend.dropout(y, GradMode::Write, x, 0.4f, by_memory);
    s.backend.dropout(z, GradMode::Write, x, 0.4f, plain);
    CHECK(values(y) == values(z));
  }
}

TEST_CASE("dropout adds where asked and keeps everything at p = 0") {
  for (const Subject& s : subjects()) {
    Tensor x = padded(s.backend, s.dtype, 5, 7, 1, 1u), y = padded(s.backend, s.dtype, 5, 7, 2, 2u);
    std::vector<double> before = values(y);
    s.backend.dropout(y, GradMode::Add, x, 0.0f, {});
    std::vector<double> want = values(x);
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += before[i];
    check_close(values(y), want, unit_roundoff(s.dtype), {0x1p-53}, "dropout add");
    CHECK_THROWS_AS(s.backend.dropout(y, GradMode::Write, x, 1.0f, {}), Error);
  }
}
