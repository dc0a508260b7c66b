// Rotary positions against the plain F64 twin.
#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

namespace {

Tensor table(Backend& b, DType dtype, std::int64_t P, std::int64_t D) {
  std::vector<double> v;
  for (std::int64_t p = 0; p < P; ++p)
    for (std::int64_t i = 0; i < D; ++i) {
      double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -2.0 * static_cast<double>(i % (D / 2)) / static_cast<double>(D));
      v.push_back(static_cast<float>(i < D / 2 ? std::cos(angle) : std::sin(angle)));
    }
  return tensor_from(b, stat_dtype(dtype), {P, D}, v);
}

}  // namespace

TEST_CASE("rope agrees with the F64 twin and undoes itself") {
  for (const Subject& s : subjects())
    for (auto [T, heads, D] :
         {std::array<std::int64_t, 3>{0, 1, 4}, {5, 1, 2}, {7, 3, 10}, {65, 9, 64}, {3, 2, 128}})
      for (GradMode mode : {GradMode::Write, GradMode::Add})
        for (bool inverse : {false, true}) {
          std::vector<std::int32_t> at;
          for (std::int64_t t = 0; t < T; ++t) at.push_back(static_cast<std::int32_t>(t * 7 % 50));
          Tensor x = padded(s.backend, s.dtype, T, heads * D, 3, 1),
                 y = padded(s.backend, s.dtype, T, heads * D, 5, 2);
          Tensor y64 = as_f64(y), x64 = as_f64(x);
          s.backend.rope(y, mode, x, table(s.backend, s.dtype, 50, D),
                         to_device(s.backend, Tag::Workspace, at), static_cast<int>(D), inverse);
          reference().rope(y64, mode, x64, table(reference(), DType::F64, 50, D),
                           to_device(reference(), Tag::Workspace, at), static_cast<int>(D),
                           inverse);
          const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
          check_close(values(y), values(y64), unit_roundoff(s.dtype), {4 * u * 8},
                      concat("rope ", s.name));
          CHECK(padding_intact(y));
          // Rotate in place, and back again: rotations preserve length.
          Tensor z = padded(s.backend, s.dtype, T, heads * D, 3, 1),
                 angles = table(s.backend, s.dtype, 50, D);
          Tensor positions = to_device(s.backend, Tag::Workspace, at);
          s.backend.rope(z, GradMode::Write, z, angles, positions, static_cast<int>(D), inverse);
          s.backend.rope(z, GradMode::Write, z, angles, positions, static_cast<int>(D), !inverse);
          // The table's cosines and sines are floats: cos^2 + sin^2 is 1 to 2^-22.
          check_close(values(z), values(x), 0, {(4 * unit_roundoff(s.dtype) + 0x1p-21) * 8},
                      concat("rope back ", s.name));
        }
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  Tensor table = rope_angles(40, 6), pair = rope_angles(3, 2);
  Tensor far = ints({31, 0, 7, 39, 7}), last = ints({2});
  out.push_back({"rope at far and repeated positions",
                 [=](Tape& t, const Vars& in) { return rope(t, in[0], table, far, 6); },
                 {rnd({5, 18}, 30)}});
  out.push_back({"rope of one pair",
                 [=](Tape& t, const Vars& in) { return rope(t, in[0], pair, last, 2); },
                 {rnd({1, 2}, 31)}});
});

}  // namespace
