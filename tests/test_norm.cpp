// RMSNorm and LayerNorm against the plain F64 twin.
#include "gradcheck_cases.h"

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

TEST_CASE("layernorm agrees with the F64 twin, forward and backward") {
  for (const Subject& s : subjects())
    for (auto [T, C] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {3, 7}, {5, 64}, {130, 577}, {2, 4096}})
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        const double eps = 1e-5;
        const std::string what = concat(s.name, " T ", T, " C ", C);
        Weight gain("gain", random_tensor(s.backend, s.dtype, {C}, 1)),
            bias("bias", random_tensor(s.backend, s.dtype, {C}, 6)),
            gain64("gain", as_f64(gain.values())), bias64("bias", as_f64(bias.values()));
        Tensor x = padded(s.backend, s.dtype, T, C, 3, 2),
               y = padded(s.backend, s.dtype, T, C, 1, 3), x64 = as_f64(x), y64 = as_f64(y);
        auto stat = [&](Backend& b, DType t) { return b.empty(Tag::Workspace, t, {T}); };
        const DType st = stat_dtype(s.dtype);
        Tensor mean = stat(s.backend, st), rstd = stat(s.backend, st),
               mean64 = stat(reference(), DType::F64), rstd64 = stat(reference(), DType::F64);
        s.backend.layernorm_forward(y, mean, rstd, x, gain, bias, eps);
        reference().layernorm_forward(y64, mean64, rstd64, x64, gain64, bias64, eps);
        // Sums of C numbers of size 1 are off by sqrt(C) u at 5 sigma, the mean by that over
        // sqrt(C).
        const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        const double r = 5 * u * std::sqrt(static_cast<double>(C + 1)) + 8 * u;
        check_close(values(mean), values(mean64), 0, {r}, what + " mean");
        check_close(values(rstd), values(rstd64), r, {1e-300}, what + " rstd");
        std::vector<double> rs = values(rstd64), in = values(x), w = values(gain.values()),
                            b = values(bias.values()), size;
        for (std::size_t i = 0; i < in.size(); ++i) {
          const std::size_t row = i / static_cast<std::size_t>(C),
                            col = i % static_cast<std::size_t>(C);
          size.push_back(4 * r *
                         ((std::abs(in[i]) + 1) * rs[row] * std::abs(w[col]) + std::abs(b[col])));
        }
        check_close(values(y), values(y64), unit_roundoff(s.dtype), size, what + " y");
        CHECK(padding_intact(y));

        Tensor dy = padded(s.backend, s.dtype, T, C, 2, 4),
               dx = padded(s.backend, s.dtype, T, C, 5, 5), dx64 = as_f64(dx);
        s.backend.layernorm_backward(dx, mode, dy, x, gain, mean, rstd);
        reference().layernorm_backward(dx64, mode, as_f64(dy), x64, gain64, mean64, rstd64);
        // g, mean(g) and xhat mean(g xhat) are each of the size of max |g| (1 + |xhat|).
        std::vector<double> slack, up = values(dy);
        for (std::size_t i = 0; i < up.size(); ++i) {
          const std::size_t row = i / static_cast<std::size_t>(C),
                            first = row * static_cast<std::size_t>(C);
          double g = 0, dot = 0;
          for (std::size_t j = 0; j < static_cast<std::size_t>(C); ++j) {
            const double v = std::abs(up[first + j] * w[j]) / static_cast<double>(C);
            g += v, dot += v * (std::abs(in[first + j]) + 1) * rs[row];
          }
          const double own = std::abs(up[i] * w[i - first]);
          slack.push_back(8 * r * rs[row] * (own + g + (std::abs(in[i]) + 1) * rs[row] * dot) +
                          (mode == GradMode::Add ? 8 * u : 0) + 1e-300);
        }
        check_close(values(dx), values(dx64), unit_roundoff(s.dtype), slack, what + " dx");
        CHECK(padding_intact(dx));
      }
}

TEST_CASE("layernorm far from zero: the variance does not cancel") {
  for (const Subject& s : subjects()) {
    if (s.dtype == DType::BF16) continue;  // keeps no difference of 1 at 4096
    Weight gain("gain", tensor_from(s.backend, s.dtype, {4}, {1, 1, 1, 1})),
        bias("bias", tensor_from(s.backend, s.dtype, {4}, {0, 0, 0, 0}));
    Tensor x = tensor_from(s.backend, s.dtype, {1, 4}, {4097, 4095, 4097, 4095});
    Tensor y = random_tensor(s.backend, s.dtype, {1, 4}, 2);
    Tensor mean = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {1}),
           rstd = s.backend.empty(Tag::Workspace, stat_dtype(s.dtype), {1});
    s.backend.layernorm_forward(y, mean, rstd, x, gain, bias, 0);
    CHECK(values(y) == std::vector<double>{1, -1, 1, -1});
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

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  const Weight gain = frozen({9}, 20), one = frozen({1}, 21);
  out.push_back({"rmsnorm",
                 [=](Tape& t, const Vars& in) { return rmsnorm(t, in[0], gain, 1e-5); },
                 {rnd({4, 9}, 22)}});
  out.push_back({"rmsnorm of one number, eps felt",
                 [=](Tape& t, const Vars& in) { return rmsnorm(t, in[0], one, 0.3); },
                 {rnd({1, 1}, 23)}});
  const Weight head_gain = frozen({3}, 24), bias = frozen({9}, 25), one_bias = frozen({1}, 26);
  out.push_back({"rmsnorm of each head",
                 [=](Tape& t, const Vars& in) { return rmsnorm(t, in[0], head_gain, 1e-5); },
                 {rnd({4, 9}, 27)}});
  out.push_back({"layernorm",
                 [=](Tape& t, const Vars& in) { return layernorm(t, in[0], gain, bias, 1e-5); },
                 {rnd({4, 9}, 28)}});
  out.push_back({"layernorm of one number: nothing passes",
                 [=](Tape& t, const Vars& in) { return layernorm(t, in[0], one, one_bias, 0.3); },
                 {rnd({2, 1}, 29)}});
  out.push_back({"rmsnorm of zeros",
                 [=](Tape& t, const Vars& in) { return rmsnorm(t, in[0], gain, 0.01); },
                 {tensor_from(reference(), DType::F64, {2, 9}, std::vector<double>(18, 0.0))}});
});

}  // namespace
