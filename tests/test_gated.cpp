// Gated units and their activations against the plain F64 twin, ordinary and extreme gates, and the
// twin of gelu against the formula with tanh.
#include <limits>
#include <numbers>

#include "cpu/fast/simd.h"
#include "gradcheck_cases.h"
#include "parity.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("fast_exp is exp to float accuracy") {
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 0.00137) {
    const float f = static_cast<float>(x);
    const double want = std::exp(static_cast<double>(f));
    worst = std::max(worst, std::abs(cpu::fast_exp(f) - want) / want);
  }
  CHECK(worst < 0x1p-23);
  CHECK(cpu::fast_exp(0.0f) == 1.0f);
  CHECK(cpu::fast_exp(-88.0f) == 0.0f);
  CHECK(cpu::fast_exp(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(std::isinf(cpu::fast_exp(89.0f)));
  CHECK(std::isinf(cpu::fast_exp(std::numeric_limits<float>::infinity())));
  CHECK(std::isnan(cpu::fast_exp(std::nanf(""))));
}

namespace {

void check_swiglu(const Subject& s) {
  for (auto [T, F] :
       {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 7}, {130, 257}, {2, 9001}})
    for (double size : {1.0, 40.0, 1000.0}) {
      Tensor gate = padded(s.backend, s.dtype, T, F, 3, 1, size),
             up = padded(s.backend, s.dtype, T, F, 1, 2);
      Tensor dy = padded(s.backend, s.dtype, T, F, 2, 3),
             y = padded(s.backend, s.dtype, T, F, 4, 4);
      Tensor gate64 = as_f64(gate), up64 = as_f64(up), y64 = as_f64(y);
      s.backend.gated_forward(Activation::Silu, y, gate, up);
      reference().gated_forward(Activation::Silu, y64, gate64, up64);
      // exp is good to 2 u, and there are five more operations; below exp(-87) floats run out.
      const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24,
                   tiny = s.dtype == DType::F64 ? 1e-300 : 1e-34;
      const std::string what = concat(s.name, " ", T, "x", F, " size ", size);
      check_close(values(y), values(y64), unit_roundoff(s.dtype) + 8 * u, {tiny}, what + " y");
      CHECK(padding_intact(y));
      Tensor dgate64 = as_f64(y), dup64 = as_f64(y);
      reference().gated_backward(Activation::Silu, {}, dgate64, GradMode::Write, dup64, as_f64(dy),
                                 gate64, up64);
      std::vector<double> slack, d = values(dy), uu = values(up), g = values(gate);
      for (std::size_t i = 0; i < d.size(); ++i)  // s (1 + g (1 - s)) cancels near g = -1.28
        slack.push_back(8 * u * std::abs(d[i] * uu[i]) * (1 + std::min(std::abs(g[i]), 100.0)) +
                        tiny);
      s.backend.gated_backward(Activation::Silu, dy, gate, GradMode::Write, up, dy, gate,
                               up);  // y again, over dy
      check_close(values(dy), values(y64), unit_roundoff(s.dtype) + 8 * u, {tiny},
                  what + " y again");
      CHECK(padding_intact(dy));
      check_close(values(gate), values(dgate64), unit_roundoff(s.dtype) + 8 * u, slack,
                  what + " dgate");
      check_close(values(up), values(dup64), unit_roundoff(s.dtype) + 8 * u, {tiny * 1e3},
                  what + " dup");
      CHECK((padding_intact(gate) && padding_intact(up)));
    }
}

}  // namespace

TEST_CASE("swiglu agrees with the F64 twin, forward and backward, in place") {
  for (const Subject& s : subjects()) check_swiglu(s);
  WithoutBf16Tile without;
  check_swiglu({"bf16 without its arithmetic", fast(), DType::BF16});
}

TEST_CASE("gelu is x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2") {
  std::vector<double> x;
  for (double v = -12; v <= 12; v += 0.37) x.push_back(v);
  const std::int64_t n = std::ssize(x);
  Tensor in = tensor_from(reference(), DType::F64, {1, n}, x), y = as_f64(in), one = as_f64(in);
  reference().fill(one, 1.0);
  reference().gated_forward(Activation::Gelu, y, in, {});
  std::vector<double> got = values(y);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double u = std::sqrt(2 / std::numbers::pi) * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
    CHECK(got[i] == doctest::Approx(x[i] * (1 + std::tanh(u)) / 2).epsilon(1e-12).scale(1));
  }
  Tensor gated = as_f64(in);
  reference().gated_forward(Activation::Gelu, gated, in, one);
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
        s.backend.gated_forward(Activation::Gelu, y, gate, up);
        reference().gated_forward(Activation::Gelu, y64, gate64, up64);
        check_close(values(y), values(y64), store, slack, what + " geglu");
        CHECK(padding_intact(y));
        std::vector<double> alone(slack);
        for (std::size_t i = 0; i < alone.size(); ++i)
          alone[i] = slack[i] / std::max(std::abs(uu[i]), 1e-30) + 1e-34;
        s.backend.gated_forward(Activation::Gelu, y, gate, {});
        reference().gated_forward(Activation::Gelu, y64, gate64, {});
        check_close(values(y), values(y64), store, alone, what + " gelu");
        for (GradMode mode : {GradMode::Write, GradMode::Add}) {
          Tensor dx = padded(s.backend, s.dtype, T, F, 5, 5), dx64 = as_f64(dx);
          std::vector<double> wide(slack_dx), before = values(dx);
          if (mode == GradMode::Add)
            for (std::size_t i = 0; i < wide.size(); ++i) wide[i] += 2 * u * std::abs(before[i]);
          s.backend.gated_backward(Activation::Gelu, {}, dx, mode, {}, dy, gate, {});
          reference().gated_backward(Activation::Gelu, {}, dx64, mode, {}, dy64, gate64, {});
          check_close(values(dx), values(dx64), store, wide, what + " gelu dx");
          CHECK(padding_intact(dx));
        }
        Tensor dgate64 = as_f64(y), dup64 = as_f64(y);
        reference().gated_backward(Activation::Gelu, {}, dgate64, GradMode::Write, dup64, dy64,
                                   gate64, up64);
        s.backend.gated_backward(Activation::Gelu, {}, gate, GradMode::Write, up, dy, gate,
                                 up);  // in place
        check_close(values(gate), values(dgate64), store, slack_dx, what + " dgate");
        check_close(values(up), values(dup64), store, slack_up, what + " dup");
        CHECK((padding_intact(gate) && padding_intact(up)));
      }
}

TEST_CASE("silu and relu alone agree with the F64 twin, forward and backward") {
  for (const Subject& s : subjects())
    for (Activation act : {Activation::Silu, Activation::Relu})
      for (auto [T, F] :
           {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 7}, {130, 257}, {2, 9001}})
        for (GradMode mode : {GradMode::Write, GradMode::Add}) {
          const std::string what = concat(s.name, " ", T, "x", F);
          Tensor x = padded(s.backend, s.dtype, T, F, 3, 1, 4.0),
                 dy = padded(s.backend, s.dtype, T, F, 2, 2),
                 y = padded(s.backend, s.dtype, T, F, 4, 3),
                 dx = padded(s.backend, s.dtype, T, F, 1, 4);
          Tensor x64 = as_f64(x), y64 = as_f64(y), dx64 = as_f64(dx);
          const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
          std::vector<double> slack, in = values(x), up = values(dy), before = values(dx);
          for (std::size_t i = 0; i < in.size(); ++i)
            slack.push_back(
                8 * u * (std::abs(up[i]) * (1 + std::abs(in[i])) + std::abs(before[i])) + 1e-34);
          s.backend.gated_forward(act, y, x, {});
          reference().gated_forward(act, y64, x64, {});
          check_close(values(y), values(y64), unit_roundoff(s.dtype) + 8 * u, {1e-34}, what + " y");
          s.backend.gated_backward(act, {}, dx, mode, {}, dy, x, {});
          reference().gated_backward(act, {}, dx64, mode, {}, as_f64(dy), x64, {});
          check_close(values(dx), values(dx64), unit_roundoff(s.dtype), slack, what + " dx");
          CHECK((padding_intact(y) && padding_intact(dx)));
        }
}

TEST_CASE("relu is max(x, 0), exactly, and its slope at 0 is 0") {
  const std::vector<double> x{-1e30, -3, -1e-30, 0, 1e-30, 0.5, 1e30};
  for (const Subject& s : subjects()) {
    Tensor in = tensor_from(s.backend, s.dtype, {1, 7}, x),
           y = tensor_from(s.backend, s.dtype, {1, 7}, x),
           one = tensor_from(s.backend, s.dtype, {1, 7}, std::vector<double>(7, 1.0));
    const std::vector<double> stored = values(in);
    s.backend.gated_forward(Activation::Relu, y, in, {});
    for (std::size_t i = 0; i < 7; ++i) CHECK(values(y)[i] == std::max(stored[i], 0.0));
    s.backend.gated_backward(Activation::Relu, {}, y, GradMode::Write, {}, one, in, {});
    CHECK(values(y) == std::vector<double>{0, 0, 0, 0, 1, 1, 1});
  }
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  auto f = [](Tape& t, const Vars& in) { return swiglu(t, in[0], in[1]); };
  out.push_back({"swiglu", f, {rnd({3, 5}, 70, 2.0), rnd({3, 5}, 71)}});
  out.push_back({"swiglu of one number", f, {rnd({1, 1}, 72), rnd({1, 1}, 73)}});
  out.push_back(
      {"swiglu where the sigmoid is flat",
       f,
       {tensor_from(reference(), DType::F64, {1, 4}, {-40, -12, 12, 40}), rnd({1, 4}, 74)}});
  auto g = [](Tape& t, const Vars& in) { return geglu(t, in[0], in[1]); };
  out.push_back({"geglu", g, {rnd({3, 5}, 76, 2.0), rnd({3, 5}, 77)}});
  out.push_back({"geglu where the sigmoid is flat",
                 g,
                 {tensor_from(reference(), DType::F64, {1, 4}, {-9, -4, 4, 9}), rnd({1, 4}, 78)}});
  out.push_back({"geglu, gate = up",
                 [](Tape& t, const Vars& in) { return geglu(t, in[0], in[0]); },
                 {rnd({2, 3}, 79)}});
  auto h = [](Tape& t, const Vars& in) { return gelu(t, in[0]); };
  out.push_back({"gelu", h, {rnd({3, 5}, 80, 2.0)}});
  out.push_back({"gelu of one number", h, {rnd({1, 1}, 81)}});
  out.push_back({"swiglu, gate = up",
                 [](Tape& t, const Vars& in) { return swiglu(t, in[0], in[0]); },
                 {rnd({2, 3}, 75)}});
});

}  // namespace

// ---- on a GPU ------------------------------------------------------------------------------------

TEST_CASE("cuda: swiglu") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    Results r = compare("swiglu", t, l, [&](const Side& s) {
      Guarded y = numbers(s, rows, cols, 1), gate = numbers(s, rows, cols, 2, 6.0),
              up = numbers(s, rows, cols, 3), dgate = numbers(s, rows, cols, 4),
              dup = numbers(s, rows, cols, 5), dy = numbers(s, rows, cols, 6);
      s.backend.gated_forward(Activation::Silu, y, gate, up);
      s.backend.gated_backward(Activation::Silu, {}, dgate, GradMode::Write, dup, dy, gate, up);
      s.backend.gated_backward(Activation::Silu, dy, gate, GradMode::Write, up, dy, gate,
                               up);  // in place, y again over dy
      return std::vector<Guarded>{y, dgate, dup, gate, up, dy};
    });
    double u = unit_roundoff(t);
    std::vector<double> gate = magnitudes(t, rows * cols, 2, 6.0),
                        up = magnitudes(t, rows * cols, 3), dy = magnitudes(t, rows * cols, 6),
                        size(gate);
    for (std::size_t i = 0; i < size.size(); ++i) size[i] = dy[i] * up[i] * (1 + gate[i]);
    check_close(r.got[0], r.want[0], u, f32_slack(8, r.want[0]),
                label("swiglu y", t, rows, cols, l));
    check_close(r.got[1], r.want[1], u, f32_slack(8, size),
                label("swiglu dgate", t, rows, cols, l));
    check_close(r.got[2], r.want[2], u, f32_slack(8, r.want[2]),
                label("swiglu dup", t, rows, cols, l));
    CHECK(r.got[3] == r.got[1]);
    CHECK(r.got[4] == r.got[2]);
    check_close(r.got[5], r.want[5], u, f32_slack(8, r.want[0]),
                label("swiglu y again", t, rows, cols, l));
  });
}

TEST_CASE("cuda: geglu and gelu") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("geglu", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), gate = numbers(s, rows, cols, 2, 2.0),
                up = numbers(s, rows, cols, 3), dgate = numbers(s, rows, cols, 4),
                dup = numbers(s, rows, cols, 5), dy = numbers(s, rows, cols, 6),
                alone = numbers(s, rows, cols, 7), dx = numbers(s, rows, cols, 8);
        s.backend.gated_forward(Activation::Gelu, y, gate, up);
        s.backend.gated_backward(Activation::Gelu, {}, dgate, GradMode::Write, dup, dy, gate, up);
        s.backend.gated_forward(Activation::Gelu, alone, gate, {});
        s.backend.gated_backward(Activation::Gelu, {}, dx, mode, {}, dy, gate, {});
        s.backend.gated_backward(Activation::Gelu, {}, gate, GradMode::Write, up, dy, gate,
                                 up);  // in place
        return std::vector<Guarded>{y, dgate, dup, alone, dx, gate, up};
      });
      double u = unit_roundoff(t);
      std::vector<double> gate = magnitudes(t, rows * cols, 2, 2.0),
                          up = magnitudes(t, rows * cols, 3), dy = magnitudes(t, rows * cols, 6),
                          dx = magnitudes(t, rows * cols, 8), value(gate), slope(gate);
      // z is off by a few ulps of |z|, which the sigmoid's own fall keeps below a half in all.
      for (std::size_t i = 0; i < gate.size(); ++i) {
        value[i] = gate[i] * up[i];
        slope[i] = dy[i] * up[i] * (1 + gate[i]);
        dx[i] += dy[i] * (1 + gate[i]);
      }
      std::vector<double> dup(gate);
      for (std::size_t i = 0; i < gate.size(); ++i) dup[i] = gate[i] * dy[i];
      check_close(r.got[0], r.want[0], u, f32_slack(8, value), label("geglu y", t, rows, cols, l));
      check_close(r.got[1], r.want[1], u, f32_slack(16, slope),
                  label("geglu dgate", t, rows, cols, l));
      check_close(r.got[2], r.want[2], u, f32_slack(8, dup), label("geglu dup", t, rows, cols, l));
      check_close(r.got[3], r.want[3], u, f32_slack(8, gate), label("gelu y", t, rows, cols, l));
      check_close(r.got[4], r.want[4], u, f32_slack(16, dx), label("gelu dx", t, rows, cols, l));
      CHECK(r.got[5] == r.got[1]);
      CHECK(r.got[6] == r.got[2]);
    }
  });
}

TEST_CASE("cuda: swiglu far from zero") {
  LK_NEEDS_GPU();
  std::vector<double> gate = {-1e4, -200, -90, -30, 0, 30, 90, 200, 1e4};
  Tensor g = tensor_from(gpu(), DType::F32, {9}, gate),
         one = gpu().empty(Tag::Workspace, DType::F32, {9});
  gpu().fill(one, 1.0);
  Tensor y = gpu().empty(Tag::Workspace, DType::F32, {9}),
         dg = y.backend().empty(Tag::Workspace, DType::F32, {9}),
         du = gpu().empty(Tag::Workspace, DType::F32, {9});
  gpu().gated_forward(Activation::Silu, y, g, one);
  gpu().gated_backward(Activation::Silu, {}, dg, GradMode::Write, du, one, g, one);
  for (const Tensor& x : {y, dg, du})
    for (double v : to_host_f64(x)) CHECK(std::isfinite(v));
}
