// Learning-rate schedules as pure functions of the step: a resumed run has nothing to restore.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

enum class ScheduleKind : std::uint8_t { Constant, Linear, Cosine };

struct Schedule {
  ScheduleKind kind = ScheduleKind::Constant;
  double lr = 2e-4;               // the peak learning rate
  std::int64_t warmup_steps = 0;  // N
  std::int64_t total_steps = 0;   // of the run: Linear and Cosine need it
};

// The learning rate of update k, counted from 0, with N warm-up steps of `total`:
//   k < N     lr (k + 1) / N
//   k >= N    p = (k - N) / (total - N), from 0 to 1 - 1 / (total - N) at the last step:
//             constant lr,  linear lr (1 - p),  cosine lr (1 + cos(pi p)) / 2
// p stays 1 past `total`. With N >= total every step of the run is warm-up.
double lr_at(const Schedule& schedule, std::int64_t step);

// Throws UsageError for a rate that is negative or not finite, negative numbers of steps, and a
// Linear or Cosine schedule without its total.
void check_schedule(const Schedule& schedule);

// Parses "constant", "linear" or "cosine". Throws UsageError for anything else.
ScheduleKind parse_schedule_kind(const std::string& name);

}  // namespace lk
