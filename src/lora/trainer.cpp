#include "lora/trainer.h"

#include <array>
#include <cmath>

#include "lora/lora_plus.h"
#include "modelfile/weight_hash.h"
#include "nn/streamed_base.h"

namespace lk {
namespace {

constexpr int kBadStepsAllowed = 2;
// A recording holds a graph of a few thousand nodes and its small inputs; the step's memory is
// shared by all recordings.
constexpr std::size_t kMostRecordings = 8, kMostLaunched = 16;

std::int64_t supervised(std::span<const HostBatch> micro_batches) {
  std::int64_t n = 0;
  for (const HostBatch& batch : micro_batches) n += batch.n_supervised();
  return n;
}

// B (out, rank) of LoRA has rows of a few numbers: hashed as `rank` rows of `out`, the same bytes
// take a fraction of the time.
std::string hash_of(const Parameter& p) {
  const Tensor& x = p.value();
  return tensor_sha256(x.reshape({x.cols(), x.rows()}));
}

}  // namespace

Trainer::Trainer(Transformer& model, Method& method, const TrainerConfig& config)
    : model_(model),
      method_(method),
      config_(config),
      optimizer_(method.parameters(), config.adamw, lora_plus(config.loraplus_ratio),
                 config.slices),
      train_step_(model, method, optimizer_,
                  {config.clip, config.seed, config.loss, config.label_smoothing}),
      recorder_(model.backend(), why_not_recorded().empty(), {kMostRecordings, kMostLaunched}) {
  visit_weights(model.weights(), [](const Weight& w) {
    require(w.has_values(), "Trainer: ", w.name(),
            " is packed for inference only: open the model with `weights` dense or stored");
  });
  check_schedule(config.schedule);
  require(std::isfinite(config.clip) && config.clip >= 0, "clip ", config.clip,
          ": must be finite and not negative; 0 turns clipping off");
  require(std::isfinite(config.loraplus_ratio) && config.loraplus_ratio >= 0, "loraplus_ratio ",
          config.loraplus_ratio, ": must be positive; 0 is without LoRA+");
  require(config.label_smoothing >= 0 && config.label_smoothing < 1, "label_smoothing ",
          config.label_smoothing, ": must be in [0, 1)");
  require(!config.loss || config.label_smoothing == 0,
          "TrainerConfig: a custom loss has no `label_smoothing` but its own");
  if (config.loss && config.pad.value_or(false))
    throw UsageError("TrainerConfig: a custom loss can't leave padded rows out; unset `pad`");
  for (const Parameter* p : method.first_to_move()) initial_.push_back(hash_of(*p));
}

void Trainer::resume_at(std::int64_t steps, std::int64_t micro_steps) {
  require(steps >= 0 && micro_steps >= steps, "Trainer::resume_at: ", steps, " steps of ",
          micro_steps, " micro-batches");
  steps_done_ = steps;
  micro_steps_done_ = micro_steps;
  optimizer_.set_steps_done(steps);
  any_finite_ = steps > 0;  // a checkpoint does not say: its steps are taken for finite
}

StepReport Trainer::step(std::span<const std::vector<const Row*>> micro_batches) {
  std::vector<HostBatch> batches;
  for (const auto& rows : micro_batches)
    batches.push_back(make_host_batch(rows, model_.virtual_tokens()));
  return step(batches);
}

StepReport Trainer::step(std::span<const Row> rows) {
  std::vector<const Row*> batch;
  for (const Row& row : rows) batch.push_back(&row);
  return step(std::array{make_host_batch(batch, model_.virtual_tokens())});
}

StepReport Trainer::step(std::span<const HostBatch> micro_batches) {
  require(in_flight_.empty(), "Trainer::step: an earlier step was submitted and not reported");
  submit({micro_batches.begin(), micro_batches.end()});
  return *next_report(true);
}

void Trainer::submit(std::vector<HostBatch> micro_batches) {
  InFlight step;
  step.submitted = Clock::now();
  StepReport& report = step.report;
  report.step = steps_done_ + 1;
  report.lr = lr_at(config_.schedule, steps_done_);
  report.supervised_tokens = supervised(micro_batches);
  for (const HostBatch& batch : micro_batches) {
    check_batch(batch, model_.batch_limits());
    report.tokens += batch.n_tokens();
  }
  require(report.supervised_tokens > 0, "a step needs at least one supervised token");

  Sizes from;
  for (const HostBatch& batch : micro_batches) from.push_back(size_of(batch));
  const Sizes sizes = padded(from);
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != from[i]) pad_batch(micro_batches[i], sizes[i]);
  const std::int64_t n_supervised = report.supervised_tokens;
  const auto upload = [&](StepTensors& tensors, std::size_t first) {
    const auto part = std::span(micro_batches).subspan(first, tensors.micro_batches.size());
    train_step_.upload(tensors, part, n_supervised,
                       micro_steps_done_ + static_cast<std::int64_t>(first));
  };
  run(sizes, upload, std::move(step));
  micro_steps_done_ += std::ssize(micro_batches);
}

BatchSize Trainer::Outline::size(std::int64_t virtual_tokens) const {
  BatchSize size = size_of(offsets, virtual_tokens);
  size.supervised = std::min(size.supervised, supervised);
  return size;
}

void Trainer::rehearse(std::vector<Outline> micro_batches) {
  Sizes from;
  for (const Outline& batch : micro_batches) from.push_back(batch.size(model_.virtual_tokens()));
  const Sizes sizes = padded(from);
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != from[i]) pad_offsets(micro_batches[i].offsets, from[i], sizes[i]);
  const auto upload = [&](StepTensors& tensors, std::size_t first) {
    for (TokenBatch& batch : tensors.micro_batches)
      batch.segments.host = std::move(micro_batches[first++].offsets);
    tensors.n_supervised = 1;
  };
  run(sizes, upload, {});
  in_flight_.clear();
}

// Submits the work of a step with micro-batches of these sizes.
void Trainer::run(const Sizes& sizes, const StepParts::Upload& upload, InFlight step) {
  StepReport& report = step.report;
  optimizer_.begin_step(static_cast<float>(report.lr));
  for (const BatchSize& size : sizes) head_gradients_ += method_.head_gradients(size.supervised);
  StepParts parts(train_step_, recorder_, sizes, upload);
  const auto whole = [this](const StepTensors& tensors) { train_step_.run(tensors); };
  const StepTensors tensors =
      config_.run_step ? config_.run_step(parts, optimizer_) : parts.run(0, sizes.size(), whole);
  report.recorded = parts.recorded();

  // Request loss and norm for the host, which need not wait for them here.
  step.loss = model_.backend().read_later(tensors.loss);
  step.norm_sq = model_.backend().read_later(tensors.norm_sq);
  ++steps_done_;
  in_flight_.push_back(std::move(step));
}

Trainer::Sizes Trainer::padded(const Sizes& sizes) const {
  if (!config_.pad.value_or(cannot_record().empty())) return sizes;
  const BatchSize size = padded_size(sizes);
  Sizes to = sizes;
  for (BatchSize& one : to)
    if (one.supervised > 0)  // micro-batches without supervised tokens do not run
      one = {size.tokens, size.documents, size.supervised, one.virtual_rows};
  return to;
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

// The only place that waits for the device.
StepReport Trainer::finish(InFlight step) {
  StepReport& report = step.report;
  report.loss = step.loss->value();
  report.grad_norm = std::sqrt(step.norm_sq->value());
  report.skipped = !std::isfinite(report.loss) || !std::isfinite(report.grad_norm);
  if (report.skipped)
    log_line(config_.log, concat("step ", report.step, ": loss or gradient not finite; no update"));
  bad_steps_in_a_row_ = report.skipped ? bad_steps_in_a_row_ + 1 : 0;
  any_finite_ = any_finite_ || !report.skipped;
  if (bad_steps_in_a_row_ > kBadStepsAllowed) give_up(report);
  const Clock::time_point start = std::max(step.submitted, last_finished_);
  last_finished_ = Clock::now();
  report.seconds = std::chrono::duration<double>(last_finished_ - start).count();
  return last_ = report;
}

void Trainer::check_any_finite() {
  if (bad_steps_in_a_row_ > 0 && !any_finite_) give_up(last_);
}

void Trainer::give_up(const StepReport& report) {
  if (config_.gather_gradients) between_steps(config_.gather_gradients);
  throw NonFiniteError(concat("step ", report.step, ": ", bad_steps_in_a_row_,
                              bad_steps_in_a_row_ == 1 ? " step was" : " steps in a row were",
                              " not finite (loss ", report.loss,
                              "); first bad gradient: ", first_non_finite()));
}

std::string Trainer::cannot_record() const {
  if (config_.loss) return "the loss is the caller's";
  if (!model_.backend().traits().can_record) return "the CPU has no launches to save";
  return "";
}

std::string Trainer::why_not_recorded() const {
  if (!config_.record) return "switched off";
  const std::string why = cannot_record();
  const bool streamed = why.empty() && is_streamed(model_.weights());
  return streamed ? "layers of the base are copied in during the step" : why;
}

std::string Trainer::first_non_finite() const {
  for (const Parameter* p : method_.parameters())
    for (double g : to_host_f64(p->grad()))
      if (!std::isfinite(g)) return p->name();
  return "none (only the loss)";
}

std::vector<std::string> Trainer::unmoved() const {
  const std::vector<Parameter*> all = method_.first_to_move();
  std::vector<std::string> names;
  for (std::size_t i = 0; i < initial_.size(); ++i)
    if (hash_of(*all[i]) == initial_[i]) names.push_back(all[i]->name());
  return names;
}

}  // namespace lk
