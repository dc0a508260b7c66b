#include "lora/train_step.h"

namespace lk {

TrainStep::TrainStep(Transformer& model, Method& method, AdamW& optimizer, Settings settings)
    : model_(model), method_(method), optimizer_(optimizer), settings_(std::move(settings)) {}

void TrainStep::run(const StepTensors& step) const {
  Backend& backend = model_.backend();
  method_.zero_grad();
  GradMode mode = GradMode::Write;
  for (std::size_t i = 0; i < step.micro_batches.size(); ++i) {
    const TokenBatch& batch = step.micro_batches[i];
    if (batch.n_supervised == 0) continue;  // it adds nothing to the loss
    Tape tape(backend);
    const Var share = loss(tape, batch, step, i);
    backend.sum(step.loss, mode, 1.0, share.value());
    mode = GradMode::Add;
    tape.backward(share);
  }
  optimizer_.grad_norm_sq(step.norm_sq);
  optimizer_.update(static_cast<float>(settings_.clip), step.norm_sq);
}

Var TrainStep::loss(Tape& tape, const TokenBatch& batch, const StepTensors& step,
                    std::uint64_t micro_step) const {
  const ForwardMode training{true, settings_.seed, micro_step,
                             step.first_micro_step.data<std::int32_t>()};
  if (!settings_.loss)
    return model_.loss(tape, batch, {1.0, step.scale, settings_.label_smoothing}, training);
  Var loss = settings_.loss(tape, model_.supervised_logits(tape, batch, training), batch,
                            1.0 / static_cast<double>(step.n_supervised));
  require(loss.value().shape() == Shape{1}, "TrainerConfig::loss: the loss is not of shape (1)");
  return loss;
}

StepTensors TrainStep::make_tensors(std::span<const BatchSize> sizes) const {
  Backend& backend = model_.backend();
  StepTensors step;
  for (const BatchSize& size : sizes) step.micro_batches.push_back(empty_batch(backend, size));
  const DType stat = stat_dtype(model_.compute_dtype());
  step.scale = backend.empty(Tag::Workspace, stat, {1});
  step.first_micro_step = backend.empty(Tag::Workspace, DType::I32, {1});
  step.loss = backend.empty(Tag::Workspace, stat, {1});
  step.norm_sq = backend.empty(Tag::Workspace, optimizer_.dtype(), {1});
  return step;
}

void TrainStep::upload(StepTensors& step, std::span<const HostBatch> micro_batches,
                       std::int64_t n_supervised, std::int64_t micro_steps_done) const {
  Backend& backend = model_.backend();
  check(micro_batches.size() == step.micro_batches.size(), "TrainStep: ", micro_batches.size(),
        " micro-batches in the place of ", step.micro_batches.size());
  for (std::size_t i = 0; i < micro_batches.size(); ++i)
    upload_batch(step.micro_batches[i], micro_batches[i]);
  step.n_supervised = n_supervised;
  backend.fill(step.scale, 1.0 / static_cast<double>(n_supervised));
  check(micro_steps_done <= INT32_MAX, "more micro-batches than a dropout key can count");
  const auto first = static_cast<std::int32_t>(micro_steps_done);
  backend.upload(step.first_micro_step, &first, sizeof first);
}

}  // namespace lk
