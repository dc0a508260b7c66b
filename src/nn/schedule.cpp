#include "nn/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tensor/error.h"

namespace lk {

double lr_at(const Schedule& s, std::int64_t step) {
  if (step < s.warmup_steps)
    return s.lr * static_cast<double>(step + 1) / static_cast<double>(s.warmup_steps);
  const std::int64_t rest = std::max<std::int64_t>(1, s.total_steps - s.warmup_steps);
  const double p =
      std::min(1.0, static_cast<double>(step - s.warmup_steps) / static_cast<double>(rest));
  switch (s.kind) {
    case ScheduleKind::Constant:
      return s.lr;
    case ScheduleKind::Linear:
      return s.lr * (1.0 - p);
    case ScheduleKind::Cosine:
      return s.lr * 0.5 * (1.0 + std::cos(std::numbers::pi * p));
  }
  return s.lr;
}

void check_schedule(const Schedule& s) {
  require(std::isfinite(s.lr) && s.lr >= 0, "lr ", s.lr, ": must be finite and not negative");
  require(s.warmup_steps >= 0, "warmup_steps ", s.warmup_steps, ": must not be negative");
  require(s.kind == ScheduleKind::Constant || s.total_steps >= 1, "total_steps ", s.total_steps,
          ": a linear or cosine schedule needs the number of steps");
}

ScheduleKind parse_schedule_kind(const std::string& name) {
  if (name == "constant") return ScheduleKind::Constant;
  if (name == "linear") return ScheduleKind::Linear;
  if (name == "cosine") return ScheduleKind::Cosine;
  throw UsageError(concat("`schedule` ", name, ": one of constant, linear, cosine"));
}

}  // namespace lk
