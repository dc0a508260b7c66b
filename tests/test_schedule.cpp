// Learning-rate curves: would catch an off-by-one at the end of warm-up or of the run.
#include "nn/schedule.h"

#include "harness.h"

using namespace lk;

namespace {
std::vector<double> curve(ScheduleKind kind, std::int64_t warmup, std::int64_t total,
                          std::int64_t steps) {
  std::vector<double> lr;
  for (std::int64_t k = 0; k < steps; ++k) lr.push_back(lr_at({kind, 8.0, warmup, total}, k));
  return lr;
}
void near(const std::vector<double>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    CHECK(got[i] == doctest::Approx(want[i]).epsilon(1e-15));
}
}  // namespace

TEST_CASE("each curve, step by step") {
  const double r = std::sqrt(0.5);
  near(curve(ScheduleKind::Constant, 0, 3, 4), {8, 8, 8, 8});
  near(curve(ScheduleKind::Constant, 4, 6, 6), {2, 4, 6, 8, 8, 8});
  near(curve(ScheduleKind::Linear, 0, 4, 5), {8, 6, 4, 2, 0});
  near(curve(ScheduleKind::Linear, 2, 6, 6), {4, 8, 8, 6, 4, 2});
  near(curve(ScheduleKind::Cosine, 0, 4, 4), {8, 4 + 4 * r, 4, 4 - 4 * r});
  near(curve(ScheduleKind::Cosine, 1, 5, 5), {8, 8, 4 + 4 * r, 4, 4 - 4 * r});
}

TEST_CASE("edges: past the end, all warm-up, one step, long runs") {
  CHECK(lr_at({ScheduleKind::Linear, 1.0, 0, 10}, 10) == 0);
  CHECK(lr_at({ScheduleKind::Linear, 1.0, 0, 10}, 1000) == 0);
  CHECK(lr_at({ScheduleKind::Cosine, 1.0, 0, 10}, 1000) == doctest::Approx(0).epsilon(1e-15));
  near(curve(ScheduleKind::Cosine, 4, 4, 4), {2, 4, 6, 8});
  near(curve(ScheduleKind::Linear, 8, 4, 4), {1, 2, 3, 4});  // warm-up is longer than the run
  near(curve(ScheduleKind::Cosine, 0, 1, 1), {8});
  near(curve(ScheduleKind::Linear, 1, 1, 1), {8});
  const std::int64_t huge = std::int64_t{1} << 40;
  CHECK(lr_at({ScheduleKind::Linear, 1.0, 0, huge}, huge / 2) == 0.5);
}

TEST_CASE("after warm-up a curve never rises and stays in [0, lr]") {
  for (ScheduleKind kind : {ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine})
    for (std::int64_t warmup : {0, 1, 7, 100}) {
      const std::vector<double> lr = curve(kind, warmup, 101, 130);
      for (std::size_t k = 0; k < lr.size(); ++k) {
        CHECK(lr[k] >= 0);
        CHECK(lr[k] <= 8);
        if (k > static_cast<std::size_t>(warmup)) CHECK(lr[k] <= lr[k - 1]);
        if (k > 0 && k < static_cast<std::size_t>(warmup)) CHECK(lr[k] > lr[k - 1]);
        if (k < 101) CHECK(lr[k] > 0);  // no step of the run is wasted
      }
    }
}

TEST_CASE("names") {
  CHECK(parse_schedule_kind("constant") == ScheduleKind::Constant);
  CHECK(parse_schedule_kind("linear") == ScheduleKind::Linear);
  CHECK(parse_schedule_kind("cosine") == ScheduleKind::Cosine);
  for (const char* bad : {"", "Cosine", "cosine ", "polynomial"})
    CHECK_THROWS_WITH_AS(parse_schedule_kind(bad), doctest::Contains("constant, linear, cosine"),
                         UsageError);
}
