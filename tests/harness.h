// What every test uses: random tensors, comparison with derived bounds, and skips that are
// reported.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tensor/backend.h"
#include "tensor/sample.h"

namespace lk::test {

// Non-empty once the running test case was skipped.
inline std::string& skip_reason() {
  static std::string reason;
  return reason;
}

// Leaves the test case and counts it as skipped.
#define LK_SKIP(reason)                                        \
  do {                                                         \
    lk::test::skip_reason() = (reason);                        \
    std::printf("SKIPPED: %s\n", std::string(reason).c_str()); \
    return;                                                    \
  } while (false)

// Unit roundoff of a stored dtype.
inline double unit_roundoff(DType t) {
  switch (t) {
    case DType::F64:
      return 0x1p-53;
    case DType::F32:
      return 0x1p-24;
    case DType::BF16:
      return 0x1p-8;
    default:
      return 0;
  }
}

// Checks |got - want| <= u_out * |want| + slack_i for every element. The caller gives
// slack_i = c * 2^-24 * (sum |a||b|)_i, or one constant for all. Prints the worst index.
inline void check_close(const std::vector<double>& got, const std::vector<double>& want,
                        double u_out, const std::vector<double>& slack, const std::string& what) {
  REQUIRE_MESSAGE(got.size() == want.size(), what);
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    double bound = u_out * std::abs(want[i]) + slack[slack.size() == 1 ? 0 : i];
    double error = std::abs(got[i] - want[i]);
    double ratio =
        std::isfinite(got[i]) ? (error == 0 ? 0 : error / std::max(bound, 1e-300)) : 1e300;
    if (ratio > worst) worst = ratio, at = i;
  }
  if (!got.empty())
    CHECK_MESSAGE(worst <= 1.0, what, ": worst at ", at, " got ", got[at], " want ", want[at],
                  " error/bound ", worst);
}

}  // namespace lk::test
