#include "lora/step_parts.h"

namespace lk {

StepTensors StepParts::run(std::size_t first, std::size_t n, const Work& work) {
  const auto begin = sizes_.begin() + static_cast<std::ptrdiff_t>(first);
  return run(
      {begin, begin + static_cast<std::ptrdiff_t>(n)},
      [&](StepTensors& tensors) { upload_(tensors, first); }, work);
}

StepTensors StepParts::finish(const Tensor& loss, const Tensor& norm_sq, const Work& work) {
  const auto copy = [&](StepTensors& tensors) {
    loss.backend().copy(tensors.loss, loss);
    loss.backend().copy(tensors.norm_sq, norm_sq);
  };
  return run({}, copy, work);
}

// The inputs go into the tensors of a recording if there is one for these sizes, else into new ones.
StepTensors StepParts::run(const Sizes& sizes, const Prepare& prepare, const Work& work) {
  StepTensors* const of_recording = recorder_.find(sizes);
  StepTensors tensors = of_recording ? *of_recording : train_step_.make_tensors(sizes);
  prepare(tensors);
  if (of_recording) {
    recorder_.replay();
    return tensors;
  }
  const auto bound = [work, tensors] { work(tensors); };
  if (!recorder_.record(sizes, tensors, bound)) {
    recorded_ = false;
    recorder_.run_beside(bound);
  }
  return tensors;
}

}  // namespace lk
