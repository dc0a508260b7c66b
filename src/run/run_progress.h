// RunProgress: what a run has done so far, across all the times that it was stopped and resumed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/json_fwd.h"
#include "nn/evaluation.h"

namespace lk {

struct BestEvaluation {
  std::int64_t step = 0;
  double loss = 0;
};

struct RunProgress {
  double first_loss = 0, last_loss = 0;
  double seconds = 0;             // of all steps
  double first_step_seconds = 0;  // from the run's start to the end of its first step
  std::int64_t tokens = 0;
  std::int64_t peak_bytes = 0;                 // of memory, in whichever part had most
  std::int64_t recorded_steps = 0;             // steps that ran as a CUDA graph
  std::optional<Evaluation> eval_before = {};  // before the first step
  std::optional<BestEvaluation> best = {};     // the lowest after step 0
  std::int64_t evaluations_since_best = 0;

  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  }
};

// As a checkpoint holds it. Losses that are not finite are null.
Json to_json(const RunProgress& progress);
// Throws InputError naming `where` and the key.
RunProgress progress_from_json(const Json& json, const std::string& where);

}  // namespace lk
