// Pace: how fast a run goes and how long it will still take, by the medians of its last steps and
// evaluations. A step that had to wait for another program moves neither; a mean would jump.
#pragma once

#include <cstdint>
#include <deque>

namespace lk {

class Pace {
 public:
  void stepped(double seconds, std::int64_t tokens);
  void evaluated(double seconds);
  // Of the last steps; 0 before the first.
  double tokens_per_second() const;
  // Seconds that so many more steps and evaluations will take; negative before the first step.
  double seconds_left(std::int64_t steps, std::int64_t evaluations) const;

 private:
  std::deque<double> step_seconds_, rates_, evaluation_seconds_;  // the last ones
};

}  // namespace lk
