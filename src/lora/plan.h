// The memory plan: what a run will need by purpose, before any weight is read.
#pragma once

#include <string>
#include <vector>

#include "lora/adapter.h"
#include "lora/proof.h"

namespace lk {

struct PlanRequest {
  ModelConfig model;
  LoraConfig lora;
  DType compute_dtype = DType::F32;
  bool on_cpu = true;
  std::int64_t batch = 1, grad_accum = 1, seq_len = 1024;
  // Lengths of the rows of the largest micro-batch; empty: `batch` rows of seq_len tokens.
  std::vector<std::int64_t> row_lengths;
};

struct Plan {
  std::int64_t base_parameters = 0, trainable_parameters = 0;
  MemoryReport memory;  // peaks by tag of one training step on these rows
  // Cheaper settings and the peak each would give, cheapest first.
  struct Option {
    std::string flag;
    std::int64_t peak_bytes = 0;
  };
  std::vector<Option> options;
};

// Runs one step of the real model code on a PlanBackend: exact but for the device's own scratch.
// Throws UsageError as Adapter does.
Plan plan_training(const PlanRequest& request);

std::string plan_text(const PlanRequest& request, const Plan& plan);
Json plan_to_json(const Plan& plan);

}  // namespace lk
