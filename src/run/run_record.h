// run.json: the settings of a run, what it ran on and its result.
#pragma once

#include <string>

#include "io/json.h"
#include "run/run_inputs.h"

namespace lk {

struct RunFacts {
  std::string status;       // "running", "finished", "stopped", "nothing trained", "failed"
  std::string fingerprint;  // of the base; empty while it is still being hashed
  std::string base_hash;    // of the base's weights in memory; empty if that was not requested
  std::string device, device_description;
  DType dtype = DType::F32;
  Recompute recompute;  // as requested, or as chosen
  std::int64_t planned_peak = 0;
  std::int64_t adapter_matrices = 0, weight_gradient_matmuls_per_micro_step = 0;
  double load_seconds = 0;
};

Json run_json(const FinetuneSettings& settings, const RunInputs& in, const RunFacts& facts,
              const FinetuneResult& result);

}  // namespace lk
