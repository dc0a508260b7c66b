// Trainer: one optimizer step of LoRA over any number of micro-batches.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lora/adapter.h"
#include "lora/own_loss.h"
#include "nn/adamw.h"
#include "nn/schedule.h"
#include "nn/transformer.h"
#include "tensor/log.h"

namespace lk {

struct TrainerConfig {
  AdamWConfig adamw;
  Schedule schedule;
  double clip = 1.0;  // 0: no clipping
  std::uint64_t seed = 0;
  bool record = true;  // run repeated steps as recorded work, where the device can
  // Bring batches to sizes that repeat (Note [Padded batches] in nn/batch.h); unset: where steps
  // can be recorded, and then whether or not they are.
  std::optional<bool> pad;
  LossFunction loss;  // instead of the mean cross-entropy; empty: that
  LogFunction log;    // hears of steps that changed nothing; may be empty
};

struct StepReport {
  std::int64_t step = 0;  // 1 for the first
  double loss = 0;        // mean over the step's supervised tokens, before the update
  double grad_norm = 0;   // before clipping
  double lr = 0;
  std::int64_t tokens = 0, supervised_tokens = 0;
  double seconds = 0;     // from its submission, or the end of the step before, to its end
  bool skipped = false;   // loss or gradient not finite: nothing was updated
  bool recorded = false;  // ran as recorded work
};

class Trainer {
 public:
  Trainer(Transformer& model, Adapter& adapter, const TrainerConfig& config);

  // Submits one optimizer step over micro-batches that fit the device one at a time. The loss is
  //   sum over supervised tokens of all micro-batches / their count,
  // so 1x8, 2x4 and 8x1 give equal gradients (to rounding).
  // A step whose loss or gradient norm is not finite changes nothing: the device decides.
  void submit(std::span<const HostBatch> micro_batches);
  // The report of the oldest step not reported yet, if it is due: the device is done with it,
  // another step was submitted after it (so the device has work while the host waits), or the step
  // before it was not finite. `drain`: any there is; ask before anything that must see all reports.
  // The third step in a row that is not finite throws NonFiniteError naming the first offending
  // parameter; no step was submitted after it if reports are asked for after each submit().
  std::optional<StepReport> next_report(bool drain);

  // Both: one step, waited for.
  StepReport step(std::span<const HostBatch> micro_batches);
  // The same from rows, laid out here: one micro-batch, or several.
  StepReport step(std::span<const Row> rows);
  StepReport step(std::span<const std::vector<const Row*>> micro_batches);

  // Optimizer steps submitted; settable to resume.
  std::int64_t steps_done() const { return steps_done_; }
  std::int64_t micro_steps_done() const { return micro_steps_done_; }
  void resume_at(std::int64_t steps, std::int64_t micro_steps);
  AdamW& optimizer() { return *optimizer_; }
  // Adapter layers whose B is bit for bit what it was when the Trainer was made.
  std::vector<std::string> unmoved() const;

  // Why steps are not recorded; empty if they are, or will be once their sizes repeat.
  std::string why_not_recorded() const;
  // Runs `work`, which leaves nothing on the device, in memory that recorded steps hold, if any do:
  // for an evaluation between steps.
  void between_steps(const std::function<void()>& work);

 private:
  // Note [Recorded steps]: on a GPU small models spend their time launching kernels. A step whose
  // batches have the sizes of a recent one is therefore recorded, from the first forward to the
  // optimizer, and run as one from then on; its inputs are copied to where the recording reads
  // them. The same kernels in the same order: the same bits. Batches are padded to few sizes, so
  // that most steps of most data repeat. Recordings and launched steps run one after the other, so
  // all of them share the memory that the first recording set apart.
  struct Batches {
    std::vector<TokenBatch> micro;
    Tensor scale;           // (1): 1 / supervised tokens of the step
    Tensor first_step;      // (1) I32: micro-batches before it, which key its dropout masks
    Tensor total, norm_sq;  // (1): the loss, and the squared gradient norm
  };
  using Sizes = std::vector<BatchSize>;  // of the micro-batches
  struct RecordedStep {
    Sizes sizes;
    Batches batches;
    std::unique_ptr<Recording> recording;
  };
  Batches upload(std::span<const HostBatch> micro_batches, double scale) const;
  void run(Batches& batches, double scale);
  // Submits the step, by a recording if it can be; true if it was.
  bool run_or_record(Batches& batches, const Sizes& sizes, double scale);
  std::string cannot_record() const;  // whatever the settings say

  using Clock = std::chrono::steady_clock;
  struct InFlight {
    StepReport report;  // without what the device computes
    Clock::time_point submitted;
    std::unique_ptr<Readback> loss, norm_sq;
  };
  Var own_loss(Tape& tape, const TokenBatch& batch, double scale, const ForwardMode& mode) const;
  StepReport finish(InFlight step);
  std::string first_non_finite() const;

  Transformer& model_;
  Adapter& adapter_;
  TrainerConfig config_;
  std::unique_ptr<AdamW> optimizer_;
  std::int64_t steps_done_ = 0, micro_steps_done_ = 0;
  std::deque<InFlight> in_flight_;
  Clock::time_point last_finished_;
  int bad_steps_in_a_row_ = 0;
  std::deque<Sizes> seen_;              // of the latest steps that ran launch by launch
  std::deque<RecordedStep> recorded_;   // the latest used last
  std::vector<std::string> initial_b_;  // SHA-256 of each layer's B
};

}  // namespace lk
