// StepParts: an optimizer step in parts, for those that compute it otherwise than TrainStep::run()
// does: several processes take a step together (dist/shared_step.h), with exchanges between the parts
// that no recording can hold. Each part is recorded once its size repeats: Note [Recorded steps] in
// tensor/recorder.h.
#pragma once

#include <functional>
#include <vector>

#include "lora/train_step.h"
#include "tensor/recorder.h"

namespace lk {

class StepParts {
 public:
  using Sizes = std::vector<BatchSize>;  // of micro-batches
  // What a recording was made of. The update of a step that runs in parts is the one without sizes. A
  // size may have two: one writes the gradient, one adds to it.
  struct Part {
    Sizes sizes;
    GradMode mode = GradMode::Write;
    bool operator==(const Part&) const = default;
  };
  using StepRecorder = Recorder<Part, StepTensors>;
  // Uploads the inputs of the micro-batches that begin with micro-batch `first` into tensors made for
  // some of them. `first_micro_step` then counts those of the step before them too.
  using Upload = std::function<void(StepTensors& tensors, std::size_t first)>;
  // Runs each time that a part is launched or recorded, and not when a recording is replayed: what
  // differs from step to step must be in the tensors. Leaves its results in them and in what outlives
  // the step.
  using Work = std::function<void(const StepTensors&)>;

  // `train_step` and `recorder` must outlive it.
  StepParts(const TrainStep& train_step, StepRecorder& recorder, Sizes sizes, Upload upload)
      : train_step_(train_step),
        recorder_(recorder),
        sizes_(std::move(sizes)),
        upload_(std::move(upload)) {}

  const TrainStep& train_step() const { return train_step_; }
  const Sizes& sizes() const { return sizes_; }
  // Runs `work` on micro-batches [first, first + n) of the step and returns their tensors. `mode`:
  // whether it adds to the gradient that earlier parts left.
  StepTensors run(std::size_t first, std::size_t n, const Work& work,
                  GradMode mode = GradMode::Write);
  // Whether run() or finish() would only replay a recording.
  bool has_recording(std::size_t first, std::size_t n, GradMode mode) const {
    return recorder_.find(part(first, n, mode)) != nullptr;
  }
  bool has_recording_of_finish() const { return recorder_.find({}) != nullptr; }
  // Runs `work`, which reads no micro-batch, on tensors that hold this loss (1) and this norm_sq (1),
  // and returns them.
  StepTensors finish(const Tensor& loss, const Tensor& norm_sq, const Work& work);
  // Runs other work between the parts, in the memory that they take while they run. It must leave
  // nothing there.
  void run_between(const std::function<void()>& work) { recorder_.run_beside(work); }
  // Whether all parts so far ran as recordings.
  bool recorded() const { return recorded_; }

 private:
  using Prepare = std::function<void(StepTensors&)>;
  Part part(std::size_t first, std::size_t n, GradMode mode) const;
  StepTensors run(const Part& part, const Prepare& prepare, const Work& work);

  const TrainStep& train_step_;
  StepRecorder& recorder_;
  Sizes sizes_;
  Upload upload_;
  bool recorded_ = true;
};

}  // namespace lk
