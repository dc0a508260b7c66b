// SharedStep: an optimizer step that several processes take together, each with the whole model.
//
//   g = ((g_0 + g_1) + g_2) + ...        g_i: the gradient of micro-batch i, over all of a step's
//
// The order of the sum is that of the micro-batches, whoever computed them: any number of processes
// leaves the same bytes. Micro-batch i is computed by process i mod W, in rounds of W. After a round
// each process receives its slices of the round's gradients, 1/W of all numbers, and adds them up; after
// the last round each gives its slices of the sum to the others. A round moves (W - 1) / W of the
// gradient's bytes in and out of each process, the last step as many again. Norm, clipping and AdamW
// are then the same computation in every process.
//
// Memory: the gradients travel chunk by chunk, in buffers of at most two chunks that exist while no
// activations do. Only a step of several rounds keeps more while it computes: the slices of the sum,
// 1/W of the gradient. One process with one micro-batch needs neither.
//
// What a process computes of a micro-batch is recorded, and so is the update (lora/step_parts.h). The
// exchanges, where the host waits for other processes, and the copies to and from their buffers are
// not.
//
// TrainStep::run() adds each micro-batch to the gradient in place instead, which rounds otherwise
// where a step has several: without a SharedStep the last bits are others.
#pragma once

#include "lora/step_parts.h"
#include "tensor/transport.h"

namespace lk {

class SharedStep {
 public:
  // Numbers of a chunk: 32 MiB. Large enough that an exchange takes longer than to wait for it.
  static constexpr std::int64_t kChunk = std::int64_t{1} << 23;

  // `transport` connects `size` processes, of which this is `rank`; null for size 1. All must outlive
  // this. `clip` is that of TrainStep::Settings.
  SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
             double clip, std::int64_t chunk = kChunk);

  // Computes what TrainStep::run() does, and returns tensors that hold the step's loss and norm_sq;
  // the processes must do so together.
  StepTensors run(StepParts& parts, AdamW& optimizer);

  // Of all steps so far, what this process computed: micro-batches, and Method::head_gradients().
  std::int64_t micro_steps() const { return micro_steps_; }
  std::int64_t head_gradients() const { return head_gradients_; }

  // Bytes that each process sends in a step, of a gradient of `numel` numbers (F32).
  static std::int64_t sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches);

 private:
  // Micro-batches that are computed at the same time: the number of processes that have one, and
  // whether the round is the step's first or last.
  struct Round {
    int n_computed = 0;
    bool first = false, last = false;
  };
  void compute(const TrainStep& train_step, const StepTensors& one);
  void add_round(const Round& round, const Tensor& loss);
  // What add_round() does to numbers [begin, begin + size * slice) of the gradient.
  void add_chunk(const Round& round, const Tensor& loss, std::int64_t begin);
  void exchange(std::span<const Transport::Piece> sends,
                std::span<const Transport::Piece> receives);
  // Calls copy(x, y) for each part x of `all`, which begins at number `begin` of the gradient, and y of
  // a parameter's gradient or the loss that have the same numbers.
  template <class Copy>
  void for_each_part(const Tensor& all, const Tensor& loss, std::int64_t begin,
                     const Copy& copy) const;
  Tensor empty(std::int64_t numel) const;

  Transformer& model_;
  Method& method_;
  Transport* transport_;
  int rank_, size_;
  double clip_;
  std::int64_t numel_ = 0;                 // of the gradient as one vector, loss and gaps included
  std::int64_t n_chunks_ = 0, slice_ = 0;  // each of n_chunks_ has `size_` slices of slice_ numbers
  Tensor sum_;                             // (n_chunks * slice) in a step of several rounds
  std::int64_t micro_steps_ = 0, head_gradients_ = 0;
};

}  // namespace lk
