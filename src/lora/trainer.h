// Trainer: optimizer steps over any number of micro-batches, submitted one after the other
// and reported as the device finishes them. train_step.h defines what a step computes.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lora/own_loss.h"
#include "lora/step_parts.h"
#include "lora/train_step.h"
#include "nn/adamw.h"
#include "nn/method.h"
#include "nn/schedule.h"
#include "nn/transformer.h"
#include "tensor/log.h"

namespace lk {

struct TrainerConfig {
  AdamWConfig adamw = {};
  Schedule schedule = {};
  double loraplus_ratio = 0;   // lora/lora_plus.h; 0: without
  double clip = 1.0;           // 0: no clipping
  double label_smoothing = 0;  // in [0, 1), of the training loss: see Backend::cross_entropy
  std::uint64_t seed = 0;
  bool record = true;  // run repeated steps as recordings, where the device can
  // Pads batches to sizes that repeat (Note [Padded batches] in nn/batch.h). Unset: pads where
  // steps can be recorded, whether or not they are.
  std::optional<bool> pad = {};
  LossFunction loss = {};  // in place of the mean cross-entropy; empty: the latter
  LogFunction log = {};    // hears of steps that updated nothing; may be empty
  // Of several processes (SharedStep::join() in dist/shared_step.h). Computes a step in place of
  // TrainStep::run() and returns tensors that hold its loss and norm_sq. Empty: TrainStep::run().
  std::function<StepTensors(StepParts&, AdamW&)> run_step = {};
  std::vector<AdamW::Slice> slices = {};  // what the optimizer updates here; empty: all
  std::function<void()> gather_gradients =
      {};  // leaves the last step's whole gradient; empty: it is
};

struct StepReport {
  std::int64_t step = 0;  // 1 for the first
  double loss = 0;        // mean over the step's supervised tokens, before the update
  double grad_norm = 0;   // before clipping
  double lr = 0;
  std::int64_t tokens = 0, supervised_tokens = 0;
  double seconds = 0;     // from its submission, or the previous step's end if later, to its end
  bool skipped = false;   // loss or gradient not finite: nothing was updated
  bool recorded = false;  // ran as a recording, or as one for each of its parts
};

class Trainer {
 public:
  // Moves and changes nothing of the model: see Method::lay_out_for_training(). Model and method
  // must outlive the Trainer. Throws UsageError for a setting out of its range.
  Trainer(Transformer& model, Method& method, const TrainerConfig& config);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Submits one optimizer step (train_step.h) over micro-batches, each of which must fit the
  // device. They are taken by value, as padding extends them. Throws UsageError if nothing is
  // supervised or a batch is not well made (check_batch() in nn/batch.h).
  void submit(std::vector<HostBatch> micro_batches);
  // The report of the oldest unreported step, if it is due: the device is done with it, another
  // step was submitted after it (so the device has work while the host waits), or the step before
  // it was not finite. With `drain` it is always due; drain before anything that must see all
  // reports. The third step in a row that is not finite throws NonFiniteError naming the first
  // offending parameter; no step was submitted after it if reports are requested after each
  // submit().
  std::optional<StepReport> next_report(bool drain);

  // Throws as the third step in a row does if no reported step was finite, as in a run of one or two
  // steps. Processes that share a run call it together.
  void check_any_finite();

  // Submits one step and waits for its report.
  StepReport step(std::span<const HostBatch> micro_batches);
  // Lays rows out first, as one micro-batch or as several, then calls step().
  StepReport step(std::span<const Row> rows);
  StepReport step(std::span<const std::vector<const Row*>> micro_batches);

  // A micro-batch without data: where its documents begin (nn/batch.h: document_offsets()), virtual
  // tokens included, and how many tokens are supervised, or all that can be if those are fewer.
  struct Outline {
    std::vector<std::int32_t> offsets;
    std::int64_t supervised = INT64_MAX;
    BatchSize size(std::int64_t virtual_tokens) const;
  };
  // Runs one step of such micro-batches on a device that only keeps the books: a plan.
  void rehearse(std::vector<Outline> micro_batches);

  // Number of optimizer steps submitted; can be set to resume a run.
  std::int64_t steps_done() const { return steps_done_; }
  std::int64_t micro_steps_done() const { return micro_steps_done_; }
  // Method::head_gradients() of all steps submitted here.
  std::int64_t head_gradients() const { return head_gradients_; }
  void resume_at(std::int64_t steps, std::int64_t micro_steps);
  AdamW& optimizer() { return optimizer_; }
  // Names of those of Method::first_to_move() that are bit for bit what they were when the Trainer
  // was made.
  std::vector<std::string> unmoved() const;

  // Why steps are not recorded; empty if they are, or will be once their sizes repeat.
  std::string why_not_recorded() const;
  // Runs `work`, which must leave nothing on the device, in memory that recorded steps hold, if any
  // do: for an evaluation between steps.
  void between_steps(const std::function<void()>& work) { recorder_.run_beside(work); }

 private:
  using Sizes = StepParts::Sizes;
  using Clock = std::chrono::steady_clock;
  struct InFlight {
    StepReport report;  // without the numbers that the device computes
    Clock::time_point submitted;
    std::unique_ptr<Readback> loss, norm_sq;
  };
  // The sizes to which batches of `sizes` are padded; equal to them where steps can't be recorded.
  Sizes padded(const Sizes& sizes) const;
  void run(const Sizes& sizes, const StepParts::Upload& upload, InFlight step);
  StepReport finish(InFlight step);
  [[noreturn]] void give_up(const StepReport& report);
  std::string cannot_record() const;  // ignoring the settings
  std::string first_non_finite() const;

  Transformer& model_;
  Method& method_;
  TrainerConfig config_;
  AdamW optimizer_;
  TrainStep train_step_;
  StepParts::StepRecorder recorder_;
  std::int64_t steps_done_ = 0, micro_steps_done_ = 0, head_gradients_ = 0;
  std::deque<InFlight> in_flight_;
  Clock::time_point last_finished_;
  int bad_steps_in_a_row_ = 0;
  bool any_finite_ = false;  // of the steps that were reported
  StepReport last_;
  std::vector<std::string> initial_;  // SHA-256 of each of Method::first_to_move()
};

}  // namespace lk
