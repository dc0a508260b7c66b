#include "lora/trainer.h"

#include <chrono>
#include <cmath>

#include "io/sha256.h"
#include "lora/fuse.h"

namespace lk {
namespace {

constexpr int kBadStepsAllowed = 2;

std::string hash(const Tensor& t) {
  std::vector<unsigned char> bytes(t.bytes());
  t.backend().download(bytes.data(), t, bytes.size());
  Sha256 h;
  h.update(bytes.data(), bytes.size());
  return h.hex();
}

std::int64_t supervised(std::span<const HostBatch> micro_batches) {
  std::int64_t n = 0;
  for (const HostBatch& batch : micro_batches) n += batch.n_supervised();
  return n;
}

}  // namespace

Trainer::Trainer(Transformer& model, Adapter& adapter, const TrainerConfig& config)
    : model_(model), adapter_(adapter), config_(config) {
  if (model.backend().prefers_fused_linear() && model.compute_dtype() == DType::BF16)
    fuse_projections(model, adapter);
  optimizer_ = std::make_unique<AdamW>(adapter.parameters(), config.adamw);  // after copies moved
  for (const LoraLinear* layer : adapter.layers()) initial_b_.push_back(hash(layer->b().value()));
}

void Trainer::resume_at(std::int64_t steps, std::int64_t micro_steps) {
  steps_done_ = steps;
  micro_steps_done_ = micro_steps;
  optimizer_->set_steps_done(steps);
}

StepReport Trainer::step(std::span<const std::vector<const Row*>> micro_batches) {
  std::vector<HostBatch> batches;
  for (const auto& rows : micro_batches) batches.push_back(make_host_batch(rows));
  return step(batches);
}

StepReport Trainer::step(std::span<const HostBatch> micro_batches) {
  const auto start = std::chrono::steady_clock::now();
  Backend& backend = model_.backend();
  StepReport report;
  report.step = steps_done_ + 1;
  report.supervised_tokens = supervised(micro_batches);
  check(report.supervised_tokens > 0, "a step needs at least one supervised token");
  const double scale = 1.0 / static_cast<double>(report.supervised_tokens);

  // 1. Forward and backward, one tape per micro-batch; gradients add up in A's and B's buffers.
  adapter_.zero_grad();
  Tensor total = backend.empty(Tag::Workspace, stat_dtype(model_.compute_dtype()), {1});
  GradMode mode = GradMode::Write;
  for (const HostBatch& host : micro_batches) {
    TokenBatch batch = upload_batch(backend, host);
    report.tokens += batch.n_tokens;
    Tape tape(backend);
    Var loss;
    if (batch.n_supervised > 0) {  // a micro-batch may hold none: its share of the loss is zero
      loss = model_.loss(tape, batch, scale,
                         {true, config_.seed, static_cast<std::uint64_t>(micro_steps_done_)});
      backend.sum(total, mode, 1.0, loss.value());
      mode = GradMode::Add;
      tape.backward(loss);
    }
    ++micro_steps_done_;
  }

  // 2. Clip by global norm and update: the norm stays on the device, AdamW reads it there.
  Tensor norm_sq = optimizer_->grad_norm_sq();
  report.lr = lr_at(config_.schedule, steps_done_);
  optimizer_->step(static_cast<float>(report.lr), static_cast<float>(config_.clip), norm_sq);

  // 3. The only wait for the device in a step.
  report.loss = to_host_f64(total)[0];
  report.grad_norm = std::sqrt(to_host_f64(norm_sq)[0]);
  report.skipped = !std::isfinite(report.loss) || !std::isfinite(report.grad_norm);
  bad_steps_in_a_row_ = report.skipped ? bad_steps_in_a_row_ + 1 : 0;
  ++steps_done_;
  if (bad_steps_in_a_row_ > kBadStepsAllowed)
    throw NonFiniteError(concat("step ", report.step, ": ", bad_steps_in_a_row_,
                                " steps in a row were not finite (loss ", report.loss,
                                "); first bad gradient: ", first_non_finite()));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

std::string Trainer::first_non_finite() const {
  for (const Parameter* p : adapter_.parameters())
    for (double g : to_host_f64(p->grad()))
      if (!std::isfinite(g)) return p->name();
  return "none (only the loss)";
}

std::vector<std::string> Trainer::unmoved() const {
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < initial_b_.size(); ++i) {
    const LoraLinear* layer = adapter_.layers()[i];
    if (hash(layer->b().value()) == initial_b_[i]) paths.push_back(layer->path());
  }
  return paths;
}

}  // namespace lk
