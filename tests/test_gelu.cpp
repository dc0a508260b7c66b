// GELU and GEGLU against the plain F64 twin, and the twin against the formula with tanh.
#include <numbers>

#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("gelu is x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2") {
  std::vector<double> x;
  for (double v = -12; v <= 12; v += 0.37) x.push_back(v);
  const std::int64_t n = std::ssize(x);
  Tensor in = tensor_from(reference(), DType::F64, {1, n}, x), y = as_f64(in), one = as_f64(in);
  reference().fill(one, 1.0);
  reference().gelu_forward(y, in);
  std::vector<double> got = values(y);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double u = std::sqrt(2 / std::numbers::pi) * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
    CHECK(got[i] == doctest::Approx(x[i] * (1 + std::tanh(u)) / 2).epsilon(1e-12).scale(1));
  }
  Tensor gated = as_f64(in);
  reference().geglu_forward(gated, in, one);
  check_close(values(gated), got, 4 * 0x1p-53, {1e-300}, "geglu of 1");
}

TEST_CASE("gelu and geglu agree with the F64 twin, forward and backward") {
  for (const Subject& s : subjects())
    for (auto [T, F] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 7}, {130, 257}, {2, 9001}})
      for (double size : {1.0, 30.0}) {
        const std::string what = concat(s.name, " ", T, "x", F, " size ", size);
        Tensor gate = padded(s.backend, s.dtype, T, F, 3, 1, size),
               up = padded(s.backend, s.dtype, T, F, 1, 2),
               dy = padded(s.backend, s.dtype, T, F, 2, 3),
               y = padded(s.backend, s.dtype, T, F, 4, 4);
        Tensor gate64 = as_f64(gate), up64 = as_f64(up), y64 = as_f64(y), dy64 = as_f64(dy);
        // z = 1.6 (x + 0.045 x^3) is rounded in five operations, each worth |z| u in exp(-z), whose
        // share of the sigmoid falls as fast as z grows: |z| s (1 - s) < 0.25. 1 - s is off by u /
        // 2 while s is not 1 (z < 17), times x z' = 3 z in the slope. Below exp(-87) floats run
        // out.
        const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        std::vector<double> slack, slack_up, slack_dx, g = values(gate), uu = values(up),
                                                       d = values(dy);
        for (std::size_t i = 0; i < g.size(); ++i) {
          const double z = 1.6 * std::abs(g[i]) * (1 + 0.045 * g[i] * g[i]);
          const double s1 = 1 / (1 + std::exp(std::min(z, 700.0)));
          const double value = std::abs(g[i]) * (g[i] > 0 ? 1 : s1) * (8 + 6 * z * (1 - s1)) * u;
          const double slope = (1 + std::min(z, 17.0) / 8 + z * 3 * (1 + z) * s1) * 24 * u;
          slack.push_back(value * std::abs(uu[i]) + 1e-34);
          slack_up.push_back(value * std::abs(d[i]) + 1e-34);
          slack_dx.push_back(slope * std::abs(d[i]) * std::max(1.0, std::abs(uu[i])) + 1e-34);
        }
        const double store = unit_roundoff(s.dtype) + 2 * u;
        s.backend.geglu_forward(y, gate, up);
        reference().geglu_forward(y64, gate64, up64);
        check_close(values(y), values(y64), store, slack, what + " geglu");
        CHECK(padding_intact(y));
        std::vector<double> alone(slack);
        for (std::size_t i = 0; i < alone.size(); ++i)
          alone[i] = slack[i] / std::max(std::abs(uu[i]), 1e-30) + 1e-34;
        s.backend.gelu_forward(y, gate);
        reference().gelu_forward(y64, gate64);
        check_close(values(y), values(y64), store, alone, what + " gelu");
        for (GradMode mode : {GradMode::Write, GradMode::Add}) {
          Tensor dx = padded(s.backend, s.dtype, T, F, 5, 5), dx64 = as_f64(dx);
          std::vector<double> wide(slack_dx), before = values(dx);
          if (mode == GradMode::Add)
            for (std::size_t i = 0; i < wide.size(); ++i) wide[i] += 2 * u * std::abs(before[i]);
          s.backend.gelu_backward(dx, mode, dy, gate);
          reference().gelu_backward(dx64, mode, dy64, gate64);
          check_close(values(dx), values(dx64), store, wide, what + " gelu dx");
          CHECK(padding_intact(dx));
        }
        Tensor dgate64 = as_f64(y), dup64 = as_f64(y);
        reference().geglu_backward(dgate64, dup64, dy64, gate64, up64);
        s.backend.geglu_backward(gate, up, dy, gate, up);  // in place
        check_close(values(gate), values(dgate64), store, slack_dx, what + " dgate");
        check_close(values(up), values(dup64), store, slack_up, what + " dup");
        CHECK((padding_intact(gate) && padding_intact(up)));
      }
}

TEST_CASE("a gelu that skips its gradient touches nothing") {
  fast().gelu_backward({}, GradMode::Skip, {}, {});
}
