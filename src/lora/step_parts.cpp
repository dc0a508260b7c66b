#include "lora/step_parts.h"

namespace lk {

StepParts::Part StepParts::part(std::size_t first, std::size_t n, GradMode mode) const {
  const auto begin = sizes_.begin() + static_cast<std::ptrdiff_t>(first);
  return {{begin, begin + static_cast<std::ptrdiff_t>(n)}, mode};
}

StepTensors StepParts::run(std::size_t first, std::size_t n, const Work& work, GradMode mode) {
  return run(
      part(first, n, mode), [&](StepTensors& tensors) { upload_(tensors, first); }, work);
}

StepTensors StepParts::finish(const Tensor& loss, const Tensor& norm_sq, const Work& work) {
  const auto copy = [&](StepTensors& tensors) {
    loss.backend().copy(tensors.loss, loss);
    loss.backend().copy(tensors.norm_sq, norm_sq);
  };
  return run({}, copy, work);
}

// The inputs go into the tensors of a recording if there is one of such a part, else into new ones.
StepTensors StepParts::run(const Part& part, const Prepare& prepare, const Work& work) {
  StepTensors* const of_recording = recorder_.find(part);
  StepTensors tensors = of_recording ? *of_recording : train_step_.make_tensors(part.sizes);
  prepare(tensors);
  if (of_recording) {
    recorder_.replay();
    return tensors;
  }
  const auto bound = [work, tensors] { work(tensors); };
  if (!recorder_.record(part, tensors, bound)) {
    recorded_ = false;
    recorder_.run_beside(bound);
  }
  return tensors;
}

}  // namespace lk
