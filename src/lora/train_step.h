// TrainStep: one optimizer step, from the first forward pass to the update of what trains.
//
//   L = 1/n  sum over micro-batches, over their supervised tokens, of -log p(next token)
//   g = dL/dp                              p: all parameters; each micro-batch adds its share
//   g = g min(1, clip / |g|)               |g| is the norm over all of them
//   p = AdamW(p, g)                        nn/adamw.h
//
// n counts the supervised tokens of all micro-batches, so 1x8, 2x4 and 8x1 give equal gradients (to
// rounding). A step copies nothing from or to the host, and what it submits depends on the sizes of
// its batches alone: it can be recorded.
#pragma once

#include <span>
#include <vector>

#include "lora/own_loss.h"
#include "nn/adamw.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

// The tensors that a step reads and computes, on the device.
struct StepTensors {
  std::vector<TokenBatch> micro_batches;
  std::int64_t n_supervised = 0;  // n, without the rows that padding added
  Tensor scale;                   // (1) F32|F64: 1/n
  Tensor first_micro_step;        // (1) I32: number of earlier micro-batches, keys dropout
  Tensor loss;                    // (1) F32|F64: L, before the update
  Tensor norm_sq;                 // (1) F32|F64: |g|^2, before clipping
};

class TrainStep {
 public:
  struct Settings {
    double clip = 1.0;  // 0: no clipping
    std::uint64_t seed = 0;
    LossFunction loss = {};      // in place of -log p; empty: -log p
    double label_smoothing = 0;  // of -log p
  };
  // Model, method and optimizer must outlive the TrainStep.
  TrainStep(Transformer& model, Method& method, AdamW& optimizer, Settings settings);

  // Uninitialised tensors for micro-batches of these sizes.
  StepTensors make_tensors(std::span<const BatchSize> sizes) const;
  // Uploads the inputs of a step: micro-batches of the sizes that the tensors were made for, n as
  // `n_supervised`, and the number of micro-batches trained before them.
  void upload(StepTensors& step, std::span<const HostBatch> micro_batches,
              std::int64_t n_supervised, std::int64_t micro_steps_done) const;
  // Submits the step, after AdamW::begin_step(). The device updates nothing if |g| or L is not finite.
  void run(const StepTensors& step) const;
  // A micro-batch's share of L.
  Var loss(Tape& tape, const TokenBatch& batch, const StepTensors& step,
           std::uint64_t micro_step) const;

 private:
  Transformer& model_;
  Method& method_;
  AdamW& optimizer_;
  Settings settings_;
};

}  // namespace lk
