#include "lora/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lora/joined.h"
#include "modelfile/weight_hash.h"

namespace lk {
namespace {

constexpr int kBadStepsAllowed = 2;
// Each holds a graph of some thousand nodes and its small inputs; memory for the step is shared.
constexpr std::size_t kMostRecordings = 8, kMostSeen = 16;

// The same sizes: the values of one batch where another's lie.
void copy_batches(std::span<const TokenBatch> to, std::span<const TokenBatch> from) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    Backend& backend = to[i].ids.backend();
    backend.copy(to[i].ids, from[i].ids);
    backend.copy(to[i].positions, from[i].positions);
    backend.copy(to[i].segments.offsets, from[i].segments.offsets);
    backend.copy(to[i].rows, from[i].rows);
    backend.copy(to[i].targets, from[i].targets);
  }
}

std::int64_t supervised(std::span<const HostBatch> micro_batches) {
  std::int64_t n = 0;
  for (const HostBatch& batch : micro_batches) n += batch.n_supervised();
  return n;
}

// B (out, rank) has rows of a few numbers: as `rank` rows of `out` the same bytes are hashed
// several times as fast.
std::string hash_of_b(const LoraLinear& layer) {
  const Tensor& b = layer.b().value();
  return tensor_sha256(b.reshape({b.cols(), b.rows()}));
}

}  // namespace

Trainer::Trainer(Transformer& model, Adapter& adapter, const TrainerConfig& config)
    : model_(model), adapter_(adapter), config_(config) {
  if (config.loss && config.pad.value_or(false))
    throw UsageError("TrainerConfig: a loss of one's own can't leave padded rows out; unset `pad`");
  if (model.backend().traits().joins_projections && model.compute_dtype() == DType::BF16)
    join_projections(model, adapter);
  optimizer_ = std::make_unique<AdamW>(adapter.parameters(), config.adamw);  // after copies moved
  for (const LoraLinear* layer : adapter.layers()) initial_b_.push_back(hash_of_b(*layer));
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

StepReport Trainer::step(std::span<const Row> rows) {
  std::vector<const Row*> batch;
  for (const Row& row : rows) batch.push_back(&row);
  return step(std::array{make_host_batch(batch)});
}

StepReport Trainer::step(std::span<const HostBatch> micro_batches) {
  check(in_flight_.empty(), "Trainer::step: an earlier step was submitted and not reported");
  submit(micro_batches);
  return *next_report(true);
}

void Trainer::submit(std::span<const HostBatch> micro_batches) {
  InFlight step;
  step.submitted = Clock::now();
  Backend& backend = model_.backend();
  StepReport& report = step.report;
  report.step = steps_done_ + 1;
  report.supervised_tokens = supervised(micro_batches);
  check(report.supervised_tokens > 0, "a step needs at least one supervised token");
  const double scale = 1.0 / static_cast<double>(report.supervised_tokens);

  report.lr = lr_at(config_.schedule, steps_done_);
  Sizes sizes;
  for (const HostBatch& host : micro_batches) {
    report.tokens += host.n_tokens();
    sizes.push_back(size_of(host));
  }
  std::vector<HostBatch> padded;
  const bool pad = config_.pad.value_or(cannot_record().empty());
  if (pad) {
    const BatchSize size = padded_size(sizes);
    padded.assign(micro_batches.begin(), micro_batches.end());
    for (std::size_t i = 0; i < padded.size(); ++i)
      if (sizes[i].supervised > 0) pad_batch(padded[i], sizes[i] = size);  // others do not run
  }

  // 1. The inputs: batches and learning rate.
  Batches batches = upload(pad ? std::span<const HostBatch>(padded) : micro_batches, scale);
  optimizer_->begin_step(static_cast<float>(report.lr));

  // 2. The work.
  report.recorded = run_or_record(batches, sizes, scale);
  micro_steps_done_ += std::ssize(micro_batches);

  // 3. Loss and norm set out for the host, which need not wait for them here.
  step.loss = backend.read_later(batches.total);
  step.norm_sq = backend.read_later(batches.norm_sq);
  ++steps_done_;
  in_flight_.push_back(std::move(step));
}

bool Trainer::run_or_record(Batches& batches, const Sizes& sizes, double scale) {
  auto at = std::find_if(recorded_.begin(), recorded_.end(),
                         [&](const RecordedStep& r) { return r.sizes == sizes; });
  if (at != recorded_.end()) {
    RecordedStep step = std::move(*at);
    recorded_.erase(at);
    recorded_.push_back(std::move(step));
    copy_batches(recorded_.back().batches.micro, batches.micro);
    model_.backend().copy(recorded_.back().batches.scale, batches.scale);
    model_.backend().copy(recorded_.back().batches.first_step, batches.first_step);
    batches = recorded_.back().batches;
  } else if (auto before = std::find(seen_.begin(), seen_.end(), sizes);
             before != seen_.end() && why_not_recorded().empty()) {
    const Recording* beside = recorded_.empty() ? nullptr : recorded_.front().recording.get();
    std::unique_ptr<Recording> recording =
        model_.backend().record([&] { run(batches, scale); }, beside);
    if (recording) {
      recorded_.push_back({sizes, batches, std::move(recording)});
      seen_.erase(before);
      if (recorded_.size() > kMostRecordings) recorded_.pop_front();
    }
  }
  const bool recorded = !recorded_.empty() && recorded_.back().sizes == sizes;
  if (recorded) {
    recorded_.back().recording->run();
    return true;
  }
  if (std::find(seen_.begin(), seen_.end(), sizes) == seen_.end()) seen_.push_back(sizes);
  if (seen_.size() > kMostSeen) seen_.pop_front();
  between_steps([&] { run(batches, scale); });
  return false;
}

void Trainer::between_steps(const std::function<void()>& work) {
  if (recorded_.empty())
    work();
  else
    recorded_.back().recording->run_beside(work);
}

std::optional<StepReport> Trainer::next_report(bool drain) {
  if (in_flight_.empty()) return std::nullopt;
  const InFlight& oldest = in_flight_.front();
  const bool due = drain || in_flight_.size() > 1 || bad_steps_in_a_row_ > 0 ||
                   (oldest.loss->done() && oldest.norm_sq->done());
  if (!due) return std::nullopt;
  InFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  return finish(std::move(step));
}

// The only wait for the device.
StepReport Trainer::finish(InFlight step) {
  StepReport& report = step.report;
  report.loss = step.loss->value();
  report.grad_norm = std::sqrt(step.norm_sq->value());
  report.skipped = !std::isfinite(report.loss) || !std::isfinite(report.grad_norm);
  if (report.skipped)
    log_line(config_.log, concat("step ", report.step, ": loss or gradient not finite; no update"));
  bad_steps_in_a_row_ = report.skipped ? bad_steps_in_a_row_ + 1 : 0;
  if (bad_steps_in_a_row_ > kBadStepsAllowed)
    throw NonFiniteError(concat("step ", report.step, ": ", bad_steps_in_a_row_,
                                " steps in a row were not finite (loss ", report.loss,
                                "); first bad gradient: ", first_non_finite()));
  const Clock::time_point start = std::max(step.submitted, last_finished_);
  last_finished_ = Clock::now();
  report.seconds = std::chrono::duration<double>(last_finished_ - start).count();
  return report;
}

Trainer::Batches Trainer::upload(std::span<const HostBatch> micro_batches, double scale) const {
  Backend& backend = model_.backend();
  Batches batches;
  for (const HostBatch& host : micro_batches) batches.micro.push_back(upload_batch(backend, host));
  const DType stat = stat_dtype(model_.compute_dtype());
  batches.scale = backend.empty(Tag::Workspace, stat, {1});
  if (stat == DType::F64) {
    backend.upload(batches.scale, &scale, sizeof scale);
  } else {
    const auto narrow = static_cast<float>(scale);
    backend.upload(batches.scale, &narrow, sizeof narrow);
  }
  check(micro_steps_done_ <= INT32_MAX, "more micro-batches than a dropout key can count");
  const auto first_step = static_cast<std::int32_t>(micro_steps_done_);
  batches.first_step = to_device(backend, Tag::Workspace, {&first_step, 1});
  batches.total = backend.empty(Tag::Workspace, stat, {1});
  batches.norm_sq = backend.empty(Tag::Workspace, optimizer_->dtype(), {1});
  return batches;
}

// Forward and backward, one tape per micro-batch; gradients add up in A's and B's buffers. Then
// clip by global norm and update: the norm stays on the device, AdamW reads it there.
void Trainer::run(Batches& batches, double scale) {
  Backend& backend = model_.backend();
  adapter_.zero_grad();
  GradMode mode = GradMode::Write;
  std::uint64_t micro_step = 0;  // after the first of the step
  for (const TokenBatch& batch : batches.micro) {
    if (batch.n_supervised > 0) {  // a micro-batch may hold none: its share of the loss is zero
      Tape tape(backend);
      const ForwardMode training{true, config_.seed, micro_step,
                                 batches.first_step.data<std::int32_t>()};
      Var loss = config_.loss ? own_loss(tape, batch, scale, training)
                              : model_.loss(tape, batch, {1.0, batches.scale}, training);
      backend.sum(batches.total, mode, 1.0, loss.value());
      mode = GradMode::Add;
      tape.backward(loss);
    }
    ++micro_step;
  }
  optimizer_->grad_norm_sq(batches.norm_sq);
  optimizer_->update(static_cast<float>(config_.clip), batches.norm_sq);
}

Var Trainer::own_loss(Tape& tape, const TokenBatch& batch, double scale,
                      const ForwardMode& mode) const {
  Var loss = config_.loss(tape, model_.supervised_logits(tape, batch, mode), batch, scale);
  loss.value().expect({1}, "TrainerConfig::loss: the loss (1)");
  return loss;
}

std::string Trainer::cannot_record() const {
  if (config_.loss) return "the loss is the caller's";
  if (!model_.backend().traits().can_record) return "the CPU has no launches to save";
  return "";
}

std::string Trainer::why_not_recorded() const {
  return config_.record ? cannot_record() : "switched off";
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
    if (hash_of_b(*layer) == initial_b_[i]) paths.push_back(layer->path());
  }
  return paths;
}

}  // namespace lk
