// SwiGLU against the plain F64 twin, ordinary and extreme gates.
#include <limits>

#include "cpu/fast/simd.h"
#include "cpu_ops.h"

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
      s.backend.swiglu_forward(y, gate, up);
      reference().swiglu_forward(y64, gate64, up64);
      // exp is good to 2 u, and there are five more operations; below exp(-87) floats run out.
      const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24,
                   tiny = s.dtype == DType::F64 ? 1e-300 : 1e-34;
      const std::string what = concat(s.name, " ", T, "x", F, " size ", size);
      check_close(values(y), values(y64), unit_roundoff(s.dtype) + 8 * u, {tiny}, what + " y");
      CHECK(padding_intact(y));
      Tensor dgate64 = as_f64(y), dup64 = as_f64(y);
      reference().swiglu_backward({}, dgate64, dup64, as_f64(dy), gate64, up64);
      std::vector<double> slack, d = values(dy), uu = values(up), g = values(gate);
      for (std::size_t i = 0; i < d.size(); ++i)  // s (1 + g (1 - s)) cancels near g = -1.28
        slack.push_back(8 * u * std::abs(d[i] * uu[i]) * (1 + std::min(std::abs(g[i]), 100.0)) +
                        tiny);
      s.backend.swiglu_backward(dy, gate, up, dy, gate, up);  // y again, over dy
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
