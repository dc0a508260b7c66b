// The run's middle: steps, evaluations, checkpoints.
#include <algorithm>

#include "modelfile/base_identity.h"
#include "run/finetune_run.h"
#include "run/prefetch.h"

namespace lk {

void FinetuneRun::train() {
  first_ = trainer_->steps_done();
  const std::int64_t matmuls_before = base_.backend->weight_gradient_matmuls();
  if (first_ == 0) result_.eval_before = evaluate_now();
  Prefetch<std::vector<HostBatch>> batches(
      [this](std::int64_t step) { return in_.lay_out(step, s_.grad_accum); }, first_, in_.steps, 2);
  int stopped = 0;
  while (trainer_->steps_done() < in_.steps && !result_.out_of_patience &&
         (stopped = agreed_stop()) == 0) {
    trainer_->submit(batches.next());
    const std::int64_t step = trainer_->steps_done();
    const bool last = step == in_.steps;
    const bool evaluates = *s_.eval_every > 0 && step % *s_.eval_every == 0 && !last;
    const bool samples = s_.sample_every > 0 && step % s_.sample_every == 0 && !last;
    const bool saves = *s_.save_every > 0 && step % *s_.save_every == 0 && !last;
    report_steps(evaluates || samples || saves);
    if (leads() && facts_.fingerprint.empty() && base_.fingerprint->ready())
      attempt([&] { write_run_json("running"); });
    if (evaluates) {
      evaluate_now();
      result_.out_of_patience = watch_->is_out_of_patience();
    }
    if (samples && leads()) sample_now();
    if (samples && world_) world_->await_all();  // samples may take long
    if (leads() && report_->is_due()) attempt([&] { write_report("running"); });
    if (!saves) continue;
    prove_replicas();
    const std::optional<WholeMoments> moments = gather_moments();
    attempt([&] { save(moments); });
  }
  report_steps(true);
  const bool all_done = trainer_->steps_done() == in_.steps || result_.out_of_patience;
  result_.signal = all_done ? 0 : stopped;
  if (result_.signal == 0) trainer_->check_any_finite();
  if (result_.out_of_patience)
    listener_.message(concat("stopped at step ", trainer_->steps_done(), " of ", in_.steps, ": ",
                             s_.patience, " evaluations without a new best (`patience`)"));
  result_.steps = trainer_->steps_done();
  weight_gradient_matmuls_ = base_.backend->weight_gradient_matmuls() - matmuls_before;
  if (base_.backend->traits().can_record) {
    std::string why = trainer_->why_not_recorded();
    if (why.empty() && recorded_ == 0) why = "no two steps had batches of the same padded size";
    listener_.message(concat("CUDA graph: ", recorded_, " of ", trainer_->steps_done() - first_,
                             shared_step_ ? " steps ran as one launch for each micro-batch and one "
                                            "for the update"
                                          : " steps ran as one launch",
                             why.empty() ? "" : ": ", why));
  }
  finish();
}

std::optional<Evaluation> FinetuneRun::evaluate_now() {
  if (in_.eval.rows.empty()) return std::nullopt;
  Evaluation e;
  const auto begun = Clock::now();
  trainer_->between_steps(
      [&] { e = evaluate(*model_, in_.eval.rows, evaluation_tokens_, evaluation_share()); });
  pace_.evaluated(seconds_since(begun));
  const std::int64_t step = trainer_->steps_done();
  if (leads()) metrics_->evaluation(step, e);
  listener_.evaluated(step, e);
  const std::string warning =
      watch_->evaluated(step, e, losses_ / std::max<double>(n_losses_, 1), *method_);
  if (!warning.empty()) listener_.message(warning);
  losses_ = n_losses_ = 0;
  return e;
}

void FinetuneRun::report_steps(bool drain) {
  while (std::optional<StepReport> report = trainer_->next_report(drain)) {
    if (report->step == 1) {
      result_.first_loss = report->loss;
      result_.first_step_seconds = seconds_since(begun_);
    }
    result_.last_loss = report->loss;
    losses_ += report->loss, ++n_losses_;
    result_.seconds += report->seconds;
    result_.tokens += report->tokens;
    result_.recorded_steps += report->recorded;
    recorded_ += report->recorded;
    if (leads()) metrics_->step(*report);
    pace_.stepped(report->seconds, report->tokens);
    listener_.stepped(*report, {in_.steps, base_.backend->ledger().total().peak_bytes,
                                pace_.tokens_per_second(), seconds_left(report->step)});
  }
}

double FinetuneRun::seconds_left(std::int64_t step) const {
  const std::int64_t every = *s_.eval_every;
  std::int64_t evaluations = in_.eval.rows.empty() ? 0 : 1;  // the last one
  if (every > 0) evaluations += (in_.steps - 1) / every - std::min(step, in_.steps - 1) / every;
  return pace_.seconds_left(in_.steps - step, evaluations);
}

void FinetuneRun::save(const std::optional<WholeMoments>& moments) {
  if (leads()) metrics_->flush();
  save_state(moments);
  save_kept_adapter();
}

void FinetuneRun::save_state(const std::optional<WholeMoments>& moments) {
  result_.peak_bytes = std::max(result_.peak_bytes, base_.backend->ledger().total().peak_bytes);
  if (!leads()) return;
  save_checkpoint(s_.out, *method_, *trainer_, identity(), result_, watch_->kept(), moments);
}

void FinetuneRun::save_kept_adapter() {
  result_.kept_step = watch_->kept().empty() ? trainer_->steps_done() : result_.best->step;
  if (!leads()) return;
  BaseIdentity base{in_.base_model, fingerprint()};
  set_precision(base, in_.storage);
  watch_->with_kept(*method_, [&] { method_->save(s_.out, base); });
}

bool FinetuneRun::attempt(const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const IoError& e) {
    listener_.message(concat("warning: not saved: ", e.what(), "; the run goes on"));
    return false;
  }
}

}  // namespace lk
