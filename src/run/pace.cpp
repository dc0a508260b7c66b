#include "run/pace.h"

#include <algorithm>
#include <vector>

namespace lk {
namespace {

constexpr std::size_t kLast = 25;  // steps, and evaluations: few enough to follow a lasting change

void add(std::deque<double>& values, double value) {
  values.push_back(value);
  if (values.size() > kLast) values.pop_front();
}

// The upper one of two in the middle; 0 of none.
double median(const std::deque<double>& values) {
  if (values.empty()) return 0;
  std::vector<double> sorted(values.begin(), values.end());
  const auto middle = sorted.begin() + std::ssize(sorted) / 2;
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

}  // namespace

void Pace::stepped(double seconds, std::int64_t tokens) {
  add(step_seconds_, seconds);
  if (seconds > 0) add(rates_, static_cast<double>(tokens) / seconds);
}

void Pace::evaluated(double seconds) { add(evaluation_seconds_, seconds); }

double Pace::tokens_per_second() const { return median(rates_); }

double Pace::seconds_left(std::int64_t steps, std::int64_t evaluations) const {
  if (step_seconds_.empty()) return -1;
  return static_cast<double>(steps) * median(step_seconds_) +
         static_cast<double>(evaluations) * median(evaluation_seconds_);
}

}  // namespace lk
