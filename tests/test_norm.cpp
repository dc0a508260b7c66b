// RMSNorm against the plain F64 twin.
#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("rmsnorm agrees with the F64 twin, forward and backward") {
  for (const Subject& s : subjects())
    for (auto [T, C] : {std::pair<std::int64_t, std::int64_t>{0, 8},
                        {1, 1},
                        {3, 7},
                        {5, 64},
                        {130, 577},
                        {2, 4096}})
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        const double eps = 1e-5;
        Weight gain("gain", random_tensor(s.backend, s.dtype, {C}, 1)),
            gain64("gain", as_f64(gain.values()));
        Tensor x = padded(s.backend, s.dtype, T, C, 3, 2),
               y = padded(s.backend, s.dtype, T, C, 1, 3);
        Tensor rstd = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {T});
        Tensor x64 = as_f64(x), y64 = as_f64(y),
               rstd64 = reference().empty(Tag::Workspace, DType::F64, {T});
        s.backend.rmsnorm_forward(y, rstd, x, gain, eps);
        reference().rmsnorm_forward(y64, rstd64, x64, gain64, eps);
        // A sum of C squares is off by sqrt(C) u relatively at 5 sigma, rstd by half of it.
        const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        const double r = 5 * u * std::sqrt(static_cast<double>(C + 1)) + 4 * u;
        const std::string what = concat(s.name, " T ", T, " C ", C);
        check_close(values(rstd), values(rstd64), r, {1e-300}, what + " rstd");
        check_close(values(y), values(y64), unit_roundoff(s.dtype) + r, {1e-300}, what + " y");
        CHECK(padding_intact(y));

        Tensor dy = padded(s.backend, s.dtype, T, C, 2, 4),
               dx = padded(s.backend, s.dtype, T, C, 5, 5);
        Tensor dx64 = as_f64(dx);
        s.backend.rmsnorm_backward(dx, mode, dy, x, gain, rstd);
        reference().rmsnorm_backward(dx64, mode, as_f64(dy), x64, gain64, rstd64);
        // Both terms, g and xhat * mean(g xhat), are of the size of rstd * |g| * (1 + |xhat|^2).
        std::vector<double> slack, up = values(dy), in = values(x), w = values(gain.values()),
                                   rs = values(rstd64);
        for (std::size_t i = 0; i < up.size(); ++i) {
          const std::size_t row = i / static_cast<std::size_t>(C),
                            col = i % static_cast<std::size_t>(C);
          double mean = 0;
          for (std::size_t j = 0; j < static_cast<std::size_t>(C); ++j) {
            std::size_t at = row * static_cast<std::size_t>(C) + j;
            mean += std::abs(up[at] * w[j] * in[at] * rs[row]) / static_cast<double>(C);
          }
          slack.push_back(8 * r * rs[row] *
                              (std::abs(up[i] * w[col]) + std::abs(in[i] * rs[row]) * mean) +
                          (mode == GradMode::Add ? 8 * u : 0) + 1e-300);
        }
        check_close(values(dx), values(dx64), unit_roundoff(s.dtype), slack, what + " dx");
        CHECK(padding_intact(dx));
      }
}

TEST_CASE("a row of zeros stays finite") {
  for (const Subject& s : subjects()) {
    Weight gain("gain", random_tensor(s.backend, s.dtype, {8}, 1));
    Tensor x = tensor_from(s.backend, s.dtype, {1, 8}, std::vector<double>(8, 0.0));
    Tensor y = random_tensor(s.backend, s.dtype, {1, 8}, 2);
    Tensor rstd = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {1});
    s.backend.rmsnorm_forward(y, rstd, x, gain, 1e-6);
    for (double v : values(y)) CHECK(v == 0.0);
    CHECK(values(rstd)[0] == doctest::Approx(1e3));
  }
}

TEST_CASE("a norm that skips its gradient touches nothing") {
  fast().rmsnorm_backward({}, GradMode::Skip, {}, {}, {}, {});
}
