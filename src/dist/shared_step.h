// SharedStep: an optimizer step that several processes take together, each with the whole model.
//
//   g = ((g_0 + g_1) + g_2) + ...        g_i: the gradient of micro-batch i of those with supervised
//                                        tokens, divided by the whole step's number of such tokens
//
// The order of the sum is that of the micro-batches, whoever computed them: any number of processes
// leaves the same bytes. Micro-batch i is computed by process i mod W, in rounds of W. After a round
// each process receives its slice of the round's gradients, 1/W of all numbers, and adds them up. After
// the last round it updates its slice of the parameters, whose moments it alone has, and gives it to the
// others. A round moves (W - 1) / W of the gradient's bytes in and out of each process, the updated
// parameters as many again. The squared norm's partial sums are computed by slices too, and added by all
// in one order: dist/optimizer_slices.h.
//
// Settings::fast_reduce has another order, for a single round a step:
//
//   g = (h_0 + h_1) + ...                h_r = (g_r + g_(r + W)) + ...: of process r < W
//
// Each process first adds its micro-batches to the gradient in place, in their order. No sum waits for
// another round. The order is the same in each run with W processes, and another with another W, unless
// none has a second micro-batch to add.
//
// Memory: 1/W of AdamW's moments. What travels does so chunk by chunk, in buffers of at most two chunks
// that exist while no activations do. Only a step of several rounds keeps more while it computes: a slice
// of the sum, 1/W of the gradient.
//
// What a process computes of a micro-batch is recorded, and so is the update of its slice
// (lora/step_parts.h). The exchanges and the copies to and from their buffers are not; a chunk's copies are
// a launch or two, of however many matrices. Where all parts are recordings, the host submits a whole step
// without waiting. Else it waits for each exchange: a device takes only so many launches ahead of it, and
// if one of them waited for a process that is gone, the host would wait in a launch that nothing ends.
//
// TrainStep::run() adds each micro-batch to the gradient in place too, in another order where a step has
// several: without a SharedStep the last bits are those of fast_reduce with a single process.
#pragma once

#include "dist/optimizer_slices.h"
#include "lora/step_parts.h"
#include "lora/trainer.h"
#include "tensor/slice_kernels.h"
#include "tensor/transport.h"

namespace lk {

class SharedStep {
 public:
  // Numbers of a chunk: 32 MiB. Large enough that an exchange takes longer than to wait for it.
  static constexpr std::int64_t kChunk = std::int64_t{1} << 23;

  struct Settings {
    double clip = 1.0;            // that of TrainStep::Settings
    bool fast_reduce = false;     // the second order above
    std::int64_t chunk = kChunk;  // numbers
  };
  // `transport` connects `size` processes, of which this is `rank`; null for size 1. All must outlive
  // this.
  SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
             const Settings& settings);

  // Makes a Trainer take its steps here. This SharedStep must outlive it.
  void join(TrainerConfig& config);
  // The slices of the optimizer that run() needs; none where a process has all.
  std::vector<AdamW::Slice> own_slices() const;
  const OptimizerSlices& slices() const { return slices_; }

  // Computes what TrainStep::run() does, and returns tensors that hold the step's loss and norm_sq;
  // the processes must do so together. The gradient is then whole in no process: each has its slice
  // of it.
  StepTensors run(StepParts& parts, AdamW& optimizer);

  // Further calls that the processes must make together, between steps, beside what is recorded.
  // Leaves the whole gradient of the last step in each.
  void gather_gradients();
  // The moments of all processes, on the host, in process 0; nothing in the others. Takes no memory of
  // the device but a chunk.
  WholeMoments gather_moments(const AdamW& optimizer);

  // Of all steps so far, what this process computed: micro-batches, and Method::head_gradients().
  std::int64_t micro_steps() const { return micro_steps_; }
  std::int64_t head_gradients() const { return head_gradients_; }

  // Bytes that each process sends in a step, of a gradient of `numel` numbers (F32).
  static std::int64_t sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches,
                                 bool fast_reduce);

 private:
  using Range = OptimizerSlices::Range;
  // Gradients that are added at the same time: the number of processes that computed one, and whether
  // the round is the step's first or last.
  struct Round {
    int n_computed = 0;
    bool first = false, last = false;
  };
  // Numbers [from, to) of a tensor of the slices' vector as a vector; undefined: they stay where they are.
  // Tensor 0 is the loss, tensor t > 0 parameter t - 1: dist/optimizer_slices.h.
  using View = std::function<Tensor(std::size_t tensor, std::int64_t from, std::int64_t to)>;
  enum class Direction { IntoBuffer, OutOfBuffer };
  using Copies = std::vector<SliceKernels::Copy>;

  void compute(const TrainStep& train_step, const StepTensors& one, GradMode mode);
  // Adds the gradients of the processes that computed one to the sum, in their order. The last round
  // leaves the slice of the sum where the parameters have their gradients.
  void add_round(const Round& round, const View& gradients);
  void add_chunk(const Round& round, const View& gradients, std::int64_t chunk);
  // Leaves the step's squared norm and loss in all processes. Before it only the process whose slice the
  // loss is in, OptimizerSlices::with_loss(), has its sum.
  void share_norm(const Tensor& norm_sq, const Tensor& loss);
  // Gives each process the slices of the others.
  void gather(const View& view);
  std::vector<std::vector<float>> gather_on_host(const View& own);

  // The part of a process's slice that travels in a chunk.
  Range part(int rank, std::int64_t chunk) const;
  // Adds the copies of `range` to those that are made at once.
  void add_copies(Copies& copies, Direction direction, const Tensor& buffer, Range range,
                  const View& view) const;
  void exchange(std::span<const Transport::Piece> sends,
                std::span<const Transport::Piece> receives);
  View gradients(const Tensor& loss) const;
  Tensor empty(std::int64_t numel) const;

  Transformer& model_;
  Method& method_;
  Transport* transport_;
  int rank_, size_;
  Settings settings_;
  bool wait_ = true;  // for each exchange
  SliceKernels& kernels_;
  std::vector<Parameter*> parameters_;
  OptimizerSlices slices_;
  std::int64_t n_chunks_ = 0,
               slice_ = 0;  // each of n_chunks_ has up to slice_ numbers of each slice
  Tensor sum_;              // (n_chunks * slice) in a step of several rounds
  std::int64_t micro_steps_ = 0, head_gradients_ = 0;
};

}  // namespace lk
