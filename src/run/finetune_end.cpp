// The run's end: proofs, what it leaves in its folder, and what it says of that.
#include <algorithm>
#include <cmath>

#include "io/durable.h"
#include "modelfile/weight_hash.h"
#include "run/adapter_use.h"
#include "run/bytes_per_parameter.h"
#include "run/finetune_run.h"
#include "run/model_card.h"
#include "run/run_settings.h"

namespace lk {

void FinetuneRun::finish() {
  const std::int64_t micro_steps = shared_step_ ? shared_step_->micro_steps()
                                                : (trainer_->steps_done() - first_) * s_.grad_accum;
  const std::int64_t head_gradients =
      shared_step_ ? shared_step_->head_gradients() : trainer_->head_gradients();
  const std::int64_t updated =
      shared_step_ ? shared_step_->slices().numel(world_->rank()) : method_->n_parameters();
  prove_replicas();
  const std::optional<WholeMoments> moments = gather_moments();
  if (result_.signal != 0) {
    save(moments);
    say_which_was_kept();
  } else {
    listener_.trained();
  }
  const bool saved = result_.signal != 0 || attempt([&] { save_state(moments); });
  if (result_.signal == 0) result_.eval_after = evaluate_now();
  prove_memory(*base_.backend, *method_, weights_bytes_, weight_gradient_matmuls_ - head_gradients,
               micro_steps, before_.gradient_buffers, updated);
  if (s_.verify_base && !method_->replaces_base()) {
    std::string after = weights_sha256(model_->weights());
    check(after == facts_.base_hash, "the base weights changed during training: SHA-256 was ",
          facts_.base_hash, ", is ", after);
  }
  facts_.weight_gradient_matmuls_per_micro_step =
      micro_steps ? weight_gradient_matmuls_ / micro_steps : 0;
  result_.memory = memory_report(*base_.backend);
  result_.memory.driver_allocations -= before_.driver_allocations;
  result_.peak_bytes = std::max(result_.peak_bytes, result_.memory.peak_bytes);
  if (result_.signal == 0) {
    if (trainer_->steps_done() > first_) check_moved(trainer_->unmoved());
    save_kept_adapter();
    say_what_was_kept();
    write_card();
    if (leads()) metrics_->flush();
    if (!saved) save_state(moments);
  }
  const std::string status = result_.signal ? "stopped" : "finished";
  write_report(status);
  write_run_json(status);  // last: a run that says so has everything
}

// Single matrices may stay: those that no supervised token reads, such as a prefix out of a window's reach.
void FinetuneRun::check_moved(const std::vector<std::string>& unmoved) {
  const std::size_t n = method_->first_to_move().size();
  if (unmoved.empty()) return;
  if (unmoved.size() < n) {
    listener_.message(
        concat("warning: ", unmoved.size(), " of ", n, " trained matrices never moved (",
               unmoved[0], unmoved.size() > 1 ? ", ...)" : ")",
               ": no supervised token reads them, or `lr` ", *s_.lr, " is too small for them"));
    return;
  }
  write_run_json("nothing trained");
  throw NothingTrainedError(concat(
      "nothing was trained: all ", n, " trained matrices never moved (", unmoved[0], ", ...); no ",
      noun(), " was written. Is `lr` ", *s_.lr, " meant? Does a supervised token read them?"));
}

void FinetuneRun::say_which_was_kept() {
  const std::int64_t last = trainer_->steps_done();
  if (result_.kept_step != last)
    listener_.message(concat("kept: the ", noun(), " of step ", result_.kept_step, " of ", last,
                             ", whose evaluation loss is the lowest, ", result_.best->loss,
                             " (`keep` last keeps the other)"));
}

void FinetuneRun::say_what_was_kept() {
  say_which_was_kept();
  if (!std::isfinite(result_.last_loss) && !result_.eval_after)
    listener_.message(concat("warning: the last step's loss was ", result_.last_loss, ": the ",
                             noun(), " may give nothing but that; see what `evaluate` says of it"));
  if (!result_.eval_before || !result_.eval_after) return;
  const double before = result_.eval_before->loss,
               after = watch_->kept().empty() ? result_.eval_after->loss : result_.best->loss;
  if (after > kTaught * before)
    listener_.message(concat("warning: the evaluation loss hardly fell, from ", before, " to ",
                             after, ": the ", noun(),
                             " has learnt next to nothing that helps on other "
                             "rows; more `epochs`, a higher `lr` or other rows may"));
}

void FinetuneRun::sample_now() {
  trainer_->between_steps([&] {
    metrics_->samples(trainer_->steps_done(),
                      make_samples(*model_, *method_, *in_.tokenizer, in_.eval.rows, *s_.samples,
                                   SampleKind::Adapted, [this] { return stop_.load() != 0; }));
  });
}

void FinetuneRun::write_report(const std::string& status) {
  if (!leads()) return;
  ReportInput report{record(status), {}, {}, {}};
  if (status == "running") {
    report.seconds_left = seconds_left(trainer_->steps_done());
    report_->write(std::move(report));
    return;
  }
  report.proofs.push_back("gradients and optimizer state exist for " + result_.trained + " only");
  report.proofs.push_back(bytes_per_parameter(
      in_.methods.text(), result_.memory, result_.base_parameters, result_.trainable_parameters));
  if (s_.verify_base && !method_->replaces_base())
    report.proofs.push_back(concat(changes_base(in_.methods.lora.init)
                                       ? "what is left of the base's weights without the start of "
                                         "A and B unchanged in training, SHA-256 "
                                       : "base weights unchanged, SHA-256 ",
                                   facts_.base_hash));
  const std::int64_t n = result_.signal || stop_.load() ? 0 : *s_.samples;
  if (n > 0)
    listener_.message(concat(noun(), " saved in ", s_.out, "; writing ", n,
                             " samples for the report (`samples` 0 skips them)"));
  try {
    watch_->with_kept(*method_, [&] {
      report.samples =
          make_samples(*model_, *method_, *in_.tokenizer, in_.eval.rows, n,
                       method_->replaces_base() ? SampleKind::Adapted : SampleKind::Both,
                       [this] { return stop_.load() != 0; });
    });
  } catch (const OutOfMemoryError& e) {
    listener_.message(concat("report.html: no samples: ", e.what()));
  }
  report_->write(std::move(report));
}

void FinetuneRun::say_failed(const std::string& why) noexcept {
  if (!leads()) return;
  try {
    const bool said = facts_.status == "nothing trained";
    ReportInput report{record(said ? facts_.status : "failed"), {}, {}, {}};
    report.failure = why;
    if (!said) write_run_json("failed");
    report_->write(std::move(report));
  } catch (...) {
  }
}

void FinetuneRun::write_card() {
  if (!leads()) return;
  const CardFacts facts{in_.base_model,
                        fingerprint(),
                        dtype_name(facts_.dtype),
                        facts_.device_description,
                        in_.data.format,
                        std::ssize(in_.data.rows),
                        in_.data.supervised_tokens,
                        method_->facts(),
                        use_flags(adapter_use(record(facts_.status)).value_or(AdapterUse{}))};
  write_file_durably(s_.out + "/README.md", model_card(s_, result_, facts));
}

void FinetuneRun::write_run_json(const std::string& status) {
  if (!leads()) return;
  write_file_durably(s_.out + "/run.json", json_text(record(status), 2) + "\n");
}

Json FinetuneRun::record(const std::string& status) {
  if (status != "running" || base_.fingerprint->ready()) fingerprint();
  facts_.status = status;
  return run_json(s_, in_, facts_, result_);
}

const std::string& FinetuneRun::fingerprint() {
  if (facts_.fingerprint.empty()) facts_.fingerprint = base_.fingerprint->get();
  return facts_.fingerprint;
}

}  // namespace lk
