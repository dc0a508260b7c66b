// SharedStep: an optimizer step that several processes take together, each with the whole model.
//
//   g = ((g_0 + g_1) + g_2) + ...        g_i: the gradient of micro-batch i, over all of a step's
//
// The order of the sum is that of the micro-batches, whoever computed them: any number of processes
// leaves the same bytes. Micro-batch i is computed by process i mod W, in rounds of W. After a round
// each process receives its slice of the round's gradients, 1/W of all numbers, and adds them to the
// slice of the sum; after the last round each gives its slice to the others. A round moves
// (W - 1) / W of the gradient's bytes in and out of each process, the last step as many again; memory
// beside the gradient is 2 + 1/W times as large, none with one process and one micro-batch. Norm,
// clipping and AdamW are then the same computation in every process.
//
// TrainStep::run() adds each micro-batch to the gradient in place instead, which rounds otherwise
// where a step has several: without a SharedStep the last bits are others.
#pragma once

#include "lora/train_step.h"
#include "tensor/transport.h"

namespace lk {

class SharedStep {
 public:
  // `transport` connects `size` processes, of which this is `rank`; null for size 1. All must outlive
  // this. `clip` is that of TrainStep::Settings.
  SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
             double clip);

  // Computes what TrainStep::run() does; the processes must do so together.
  void run(const TrainStep& train_step, const StepTensors& step, AdamW& optimizer);

  // Of all steps so far, what this process computed: micro-batches, and Method::head_gradients().
  std::int64_t micro_steps() const { return micro_steps_; }
  std::int64_t head_gradients() const { return head_gradients_; }

  // Bytes that each process sends in a step, of a gradient of `numel` numbers (F32).
  static std::int64_t sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches);

 private:
  void compute(const TrainStep& train_step, const StepTensors& step, std::size_t i,
               const Tensor& loss);
  // Leaves the step's gradient where the parameters have theirs.
  void sum_gradients(const TrainStep& train_step, const StepTensors& step);
  void allocate(DType dtype);
  void pack();
  void unpack();
  Tensor slice(const Tensor& all, int rank) const;
  void add_round(int n_computed, bool first);
  void share_sum();

  Transformer& model_;
  Method& method_;
  Transport* transport_;
  int rank_, size_;
  double clip_;
  std::int64_t slice_ = 0;      // numbers in each process's slice
  Tensor loss_;                 // (1), in all_
  Tensor all_;                  // (size * slice): this process's gradient, then the sum
  Tensor received_;             // (size * slice): the others' gradients in this slice
  Tensor sum_;                  // (slice)
  std::vector<Tensor> places_;  // of each parameter's gradient in all_
  std::int64_t micro_steps_ = 0, head_gradients_ = 0;
};

}  // namespace lk
