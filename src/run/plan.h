// The memory plan: what a run will need by purpose, before any weight is read.
#pragma once

#include <string>
#include <vector>

#include "lora/proof.h"
#include "modelfile/base_precision.h"
#include "run/methods.h"

namespace lk {

// The most rows in a micro-batch, and the most micro-batches in a step, that a run takes.
inline constexpr std::int64_t kMostBatch = 65536, kMostGradAccum = 65536;

// A batch by what it needs memory for.
struct PlannedBatch {
  std::vector<std::int64_t> documents = {};  // their lengths, virtual tokens included
  std::int64_t supervised = INT64_MAX;  // tokens that are, or all that can be if those are fewer
};

struct PlanRequest {
  ModelConfig model = ModelConfig();  // not {}: GCC 12 then warns of its members
  MethodConfig methods = {};
  std::vector<HeldFormat> formats = {};  // of weight_slots(); empty: all dense
  DType compute_dtype = DType::F32;
  std::string device = "cpu";  // "cpu", "cuda" or "cuda:N"; the device need not be there
  std::int64_t batch = 1, grad_accum = 1, seq_len = 1024;
  // Lengths of the rows of the largest micro-batch there can be, virtual tokens included; empty: `batch`
  // rows of seq_len tokens and the virtual ones.
  std::vector<std::int64_t> row_lengths = {};
  std::vector<std::int64_t> rows() const;  // row_lengths, or what an empty list stands for
  std::int64_t batch_tokens() const;       // of those rows
  // What the run really has, where that is known: micro-batches and batches of evaluations, the plan
  // covering each, and the tokens of the longest prompt that is continued between steps (run/samples.h).
  std::vector<PlannedBatch> micro_batches = {};  // empty: one of those rows
  std::vector<PlannedBatch> evaluations = {};
  std::int64_t sample_prompt = 0;  // 0: none is
  Recompute recompute = {};
  StreamedLayers streamed = {};  // layers of the base that wait elsewhere
  // That share a step (dist/shared_step.h); 0: one that has it to itself. The plan is one process's.
  int processes = 0;
  bool fast_reduce = false;  // SharedStep::Settings
};

struct Plan {
  std::int64_t base_parameters = 0, trainable_parameters = 0;
  MemoryReport memory;  // peaks by tag of one training step on the rows above, and of evaluations
  // Settings that need less memory and the peak of each, cheapest first.
  struct Option {
    std::string flag;
    std::int64_t peak_bytes = 0;
  };
  std::vector<Option> options;
};

// Runs one step of the real model code on a PlanBackend. The result is exact except for small
// scratch of the device. Throws UsageError as Adapter and Transformer::set_recompute do.
Plan plan_training(const PlanRequest& request);

// What one micro-batch computes again, in FLOPs of products with frozen matrices and of attention;
// copies to the host and back that don't hide behind a layer's own work count as what fits in their
// time.
double recomputed_flops(const PlanRequest& request, const Recompute& recompute);

// How much of a budget a planned peak may take. The rest is for scratch that no plan counts: 1 %,
// plus what the device states.
std::int64_t plannable_bytes(std::int64_t budget, const DeviceTraits& device);

// Sets request.recompute to the fastest setting whose planned peak is at most the plannable part of
// `budget` bytes, and plans it. From fast to slow: nothing recomputed; gate and up of the first 1,
// 2, ... layers; then of the following, what computes least again: whole blocks, and then, where the
// device can, their inputs offloaded; or blocks but for their attention, and then whole blocks or what
// they keep offloaded. If none fits, takes the one that needs least: see check_fits().
Plan plan_within(PlanRequest& request, std::int64_t budget);

// Throws OutOfMemoryError, with the plan and what would need less, if the plan needs more than
// `bytes`, which are what "cpu has" or "`memory` allows": `where`.
void check_fits(const PlanRequest& request, const Plan& plan, std::int64_t bytes,
                const std::string& where);

// Throws OutOfMemoryError if what the plan has of the base wait on the host is more than is free there:
// for each of `processes` on this machine, of which each holds `held` bytes of it already. Pinned memory is
// granted until nothing is left for anyone else.
void check_host_fits(const Plan& plan, std::int64_t processes, std::int64_t held = 0);

std::string plan_text(const PlanRequest& request, const Plan& plan);
Json plan_to_json(const PlanRequest& request, const Plan& plan);

}  // namespace lk
