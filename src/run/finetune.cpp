#include "run/finetune.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "cuda/open_device.h"
#include "io/durable.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "modelfile/weight_hash.h"
#include "run/adapter_use.h"
#include "run/bytes_per_parameter.h"
#include "run/evaluation_watch.h"
#include "run/inference.h"
#include "run/live_report.h"
#include "run/model_card.h"
#include "run/prefetch.h"
#include "run/resume.h"
#include "run/run_files.h"
#include "run/run_identity.h"
#include "run/run_record.h"
#include "run/run_settings.h"
#include "run/run_toml.h"
#include "run/shared_base.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One run; its methods stand in the order in which they are called.
class Run {
 public:
  // `shared`: the base to run on, loaded already or by this run; null: one of its own.
  Run(const FinetuneSettings& settings, FinetuneRows* rows, SharedBase* shared,
      FinetuneListener& listener, const std::atomic<int>& stop)
      : base_(shared ? *shared : own_base_),
        rows_(rows),
        s_(settings),
        listener_(listener),
        stop_(stop) {}
  ~Run() {
    const bool gone = method_ && method_->replaces_base();
    trainer_.reset(), method_.reset();
    if (gone)
      base_.loaded.reset();
    else if (&base_ != &own_base_)
      base_.take_back(model_.get());
  }

  FinetuneResult go() {
    validate_settings(s_, rows_ != nullptr);
    if (!base_.backend) base_.backend = open_device(s_.device);
    before_ = base_.begin_run();
    facts_.device = base_.backend->name(), facts_.device_description = base_.backend->description();
    facts_.dtype = parse_compute_dtype(s_.dtype, *base_.backend);
    require_possible(s_.recompute, *base_.backend);
    refuse_input_folders(s_);
    folder_ = std::make_unique<OutputFolder>(
        s_.out, !s_.resume,
        has_checkpoint(s_.out) ? "`resume` goes on from its checkpoint; or give a new folder"
                               : kGiveAnother);
    if (s_.resume) {
      finished_ = is_finished(s_.out);
      checkpoint_ = find_checkpoint(s_.out, *folder_);
    }
    in_ = read_inputs(s_, listener_, checkpoint_ ? &checkpoint_->identity() : nullptr, rows_,
                      base_.file);
    watch_ = std::make_unique<EvaluationWatch>(s_.keep == "best", s_.patience, result_);
    if (checkpoint_)  // refuses what it can before the model is read
      check_same_run(*checkpoint_, run_identity(s_, in_, "", facts_.dtype), finished_, s_.out,
                     {"base_sha256"});
    plan();
    load();
    build();
    try {
      train();
    } catch (const Error& e) {
      say_failed(e.what());
      throw;
    }
    return result_;
  }

 private:
  // Finds out before a weight is read whether the run is out of memory.
  void plan() {
    PlanRequest request;
    request.model = in_.model->config(), request.methods = in_.methods;
    request.formats = in_.formats;
    request.compute_dtype = facts_.dtype, request.device = base_.backend->name();
    request.batch = s_.batch, request.grad_accum = s_.grad_accum, request.seq_len = *s_.seq_len;
    request.row_lengths = in_.longest_batch(s_);
    request.recompute = s_.recompute;
    const std::int64_t wanted = std::max(s_.memory_limit, s_.memory);  // one of the two is 0
    // The plan counts the base, which may be there already.
    const std::int64_t free =
        base_.backend->free_memory() + base_.backend->ledger()[Tag::Weights].live_bytes;
    const std::int64_t limit = wanted > 0 ? std::min(wanted, free) : free;
    Plan plan = s_.memory > 0 ? plan_within(request, limit) : plan_training(request);
    listener_.planned(request, plan);
    check_fits(request, plan, limit, base_.backend->name());
    facts_.recompute = request.recompute;
    facts_.planned_peak = plan.memory.peak_bytes;
    if (s_.memory > 0)
      listener_.message(concat("`memory` ", s_.memory >> 20, " MiB: `recompute` ",
                               recompute_text(facts_.recompute), ", planned peak ",
                               facts_.planned_peak >> 20, " MiB"));
    base_.backend->set_memory_limit(wanted);
  }

  void load() {
    auto start = Clock::now();
    // Masters are F32 and begin as the file has them, whatever the dtype that is computed in.
    const DType dtype = replaces_base(in_.methods) ? DType::F32 : facts_.dtype;
    // A trial of a sweep may need another form of the base than the trial before it.
    if (base_.loaded &&
        (base_.loaded->weights.embedding.dtype() != dtype || base_.storage != in_.storage))
      base_.loaded.reset();
    const bool loads = !base_.loaded;
    if (loads) base_.load(in_.model, dtype, in_.storage, s_.verify_base);
    facts_.base_hash = base_.loaded->sha256;
    model_ = std::make_unique<Transformer>(*base_.backend, base_.loaded->config,
                                           std::exchange(base_.loaded->weights, {}), facts_.dtype,
                                           *s_.seq_len + virtual_tokens(in_.methods));
    if (loads)
      listener_.message(concat("loaded ", s_.model, ": ", model_->n_parameters(), " parameters in ",
                               dtype_name(facts_.dtype), " on ", facts_.device, " (",
                               facts_.device_description, ")"));
    facts_.load_seconds = seconds_since(start);
  }

  // An adapter to start from was trained on this base, or does not say on which.
  void check_init_base() {
    if (!in_.init) return;
    if (std::string doubt = unproven_base(*in_.init, s_.model); !doubt.empty())
      listener_.message("warning: " + doubt);
    else
      check_base(*in_.init, fingerprint(), s_.model);
  }

  void make_trained_method() {
    const auto start = Clock::now();
    if (in_.init)
      method_ = attach_adapter(*model_, *in_.init, in_.methods.lora, true);
    else
      method_ = make_method(*model_, in_.methods);
    // What the base took while it was loaded is no part of training.
    if (method_->replaces_base()) base_.backend->ledger().reset_peaks();
    weights_bytes_ = base_.backend->ledger()[Tag::Weights].live_bytes;
    if (!changes_base(in_.methods.lora.init)) return;
    if (s_.verify_base) facts_.base_hash = weights_sha256(model_->weights());
    listener_.message(concat("`init` ", lora_init_name(in_.methods.lora.init),
                             ": took the start of A and B out of the base in ",
                             std::round(10 * seconds_since(start)) / 10,
                             " s; the adapter is saved for the base as it was, at twice the rank"));
  }

  void build() {
    check_init_base();
    make_trained_method();
    method_->lay_out_for_training();
    TrainerConfig config;
    config.adamw.weight_decay = static_cast<float>(s_.weight_decay);
    config.schedule = Schedule{parse_schedule_kind(*s_.schedule), *s_.lr, *s_.warmup, in_.steps};
    config.loraplus_ratio = s_.loraplus_ratio.value_or(0);
    config.clip = s_.clip;
    config.label_smoothing = s_.label_smoothing;
    config.seed = s_.seed;
    config.log = [this](const std::string& line) { listener_.message(line); };
    trainer_ = std::make_unique<Trainer>(*model_, *method_, config);
    model_->set_recompute(facts_.recompute);
    if (checkpoint_) {
      const std::string note = check_same_run(*checkpoint_, identity(), finished_, s_.out, {});
      checkpoint_->restore(*method_, *trainer_);
      static_cast<RunProgress&>(result_) = checkpoint_->progress();
      watch_->restore_kept(checkpoint_->kept(*method_));
      checkpoint_.reset();
      listener_.message(concat("resumed at step ", trainer_->steps_done(), " of ", in_.steps));
      if (!note.empty()) listener_.message(note);
    } else if (s_.resume) {
      listener_.message(concat("`resume`: ", s_.out, " holds no checkpoint; starting at step 0"));
    }
    result_.trained = what_trains(in_.methods);
    result_.trainable_parameters = method_->n_parameters();
    result_.base_parameters = method_->replaces_base() ? 0 : model_->n_parameters();
    facts_.adapter_matrices = std::ssize(method_->parameters());
    metrics_ =
        std::make_unique<MetricsLog>(s_.out, trainer_->steps_done(), s_.tensorboard, config.log);
    if (!rows_) write_file_durably(s_.out + "/run.toml", run_toml(s_));
    if (trainer_->steps_done() == 0) metrics_->settings(run_toml(s_));
    write_run_json("running");
    report_.emplace(s_.out);
    attempt([&] { write_report("running"); });
  }

  std::optional<Evaluation> evaluate_now() {
    if (in_.eval.rows.empty()) return std::nullopt;
    Evaluation e;
    trainer_->between_steps([&] {
      e = evaluate(*model_, in_.eval.rows,
                   std::max<std::int64_t>(*s_.seq_len, s_.batch * *s_.seq_len / 2));
    });
    const std::int64_t step = trainer_->steps_done();
    metrics_->evaluation(step, e);
    listener_.evaluated(step, e);
    const std::string warning =
        watch_->evaluated(step, e, losses_ / std::max<double>(n_losses_, 1), *method_);
    if (!warning.empty()) listener_.message(warning);
    losses_ = n_losses_ = 0;
    return e;
  }

  void train() {
    first_ = trainer_->steps_done();
    const std::int64_t matmuls_before = base_.backend->weight_gradient_matmuls();
    if (first_ == 0) result_.eval_before = evaluate_now();
    started_ = Clock::now();
    Prefetch<std::vector<HostBatch>> batches(
        [this](std::int64_t step) { return in_.lay_out(step, s_.grad_accum); }, first_, in_.steps,
        2);
    while (trainer_->steps_done() < in_.steps && !stop_.load() && !result_.out_of_patience) {
      trainer_->submit(batches.next());
      const std::int64_t step = trainer_->steps_done();
      const bool last = step == in_.steps;
      const bool evaluates = *s_.eval_every > 0 && step % *s_.eval_every == 0 && !last;
      const bool samples = s_.sample_every > 0 && step % s_.sample_every == 0 && !last;
      const bool saves = s_.save_every > 0 && step % s_.save_every == 0 && !last;
      report_steps(evaluates || samples || saves);
      if (facts_.fingerprint.empty() && base_.fingerprint->ready())
        attempt([&] { write_run_json("running"); });
      if (evaluates) {
        evaluate_now();
        result_.out_of_patience = watch_->is_out_of_patience();
      }
      if (samples) sample_now();
      if (report_->is_due()) attempt([&] { write_report("running"); });
      if (saves) attempt([&] { save(); });
    }
    report_steps(true);
    const bool all_done = trainer_->steps_done() == in_.steps || result_.out_of_patience;
    result_.signal = all_done ? 0 : stop_.load();
    if (result_.out_of_patience)
      listener_.message(concat("stopped at step ", trainer_->steps_done(), " of ", in_.steps, ": ",
                               s_.patience, " evaluations without a new best (`patience`)"));
    result_.steps = trainer_->steps_done();
    weight_gradient_matmuls_ = base_.backend->weight_gradient_matmuls() - matmuls_before;
    if (base_.backend->traits().can_record) {
      std::string why = trainer_->why_not_recorded();
      if (why.empty() && recorded_ == 0) why = "no two steps had batches of the same padded size";
      listener_.message(concat("CUDA graph: ", recorded_, " of ", trainer_->steps_done() - first_,
                               " steps ran as one launch", why.empty() ? "" : ": ", why));
    }
    finish();
  }

  // Writes the reports that are due. The device may be a step ahead of them; with `drain` all are
  // written.
  void report_steps(bool drain) {
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
      metrics_->step(*report);
      const double done = static_cast<double>(report->step - first_);
      seconds_left_ =
          seconds_since(started_) / done * static_cast<double>(in_.steps - report->step);
      listener_.stepped(*report, in_.steps, base_.backend->ledger().total().live_bytes,
                        seconds_left_);
    }
  }

  // The checkpoint comes first: a run killed in between can go on, whereas an adapter without one is
  // no state to go on from.
  void save() {
    metrics_->flush();
    save_state();
    save_kept_adapter();
  }

  void save_state() {
    result_.peak_bytes = std::max(result_.peak_bytes, base_.backend->ledger().total().peak_bytes);
    save_checkpoint(s_.out, *method_, *trainer_, identity(), result_, watch_->kept());
  }

  void save_kept_adapter() {
    result_.kept_step = watch_->kept().empty() ? trainer_->steps_done() : result_.best->step;
    watch_->with_kept(*method_, [&] { method_->save(s_.out, {in_.base_model, fingerprint()}); });
  }

  const char* noun() const { return method_->replaces_base() ? "model" : "adapter"; }

  // Does what a run can go on without, as it will be tried again: a disk that is full now may have
  // room later, and what was saved before is as it was. Returns whether it was done.
  bool attempt(const std::function<void()>& work) {
    try {
      work();
      return true;
    } catch (const IoError& e) {
      listener_.message(concat("warning: not saved: ", e.what(), "; the run goes on"));
      return false;
    }
  }

  // Saves, checks the proofs, then writes the rest: a failing check must not lose anything. The
  // checkpoint of a finished run stays, so that more steps can go on from it. It may fail once: the
  // adapter matters more.
  void finish() {
    const std::int64_t micro_steps = (trainer_->steps_done() - first_) * s_.grad_accum;
    if (result_.signal != 0) {
      save();
      say_which_was_kept();
    } else {
      listener_.trained();
    }
    const bool saved = result_.signal != 0 || attempt([&] { save_state(); });
    if (result_.signal == 0) result_.eval_after = evaluate_now();
    prove_memory(*base_.backend, *method_, weights_bytes_,
                 weight_gradient_matmuls_ - trainer_->head_gradients(), micro_steps,
                 before_.gradient_buffers);
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
      std::vector<std::string> unmoved = trainer_->unmoved();
      if (trainer_->steps_done() > first_ && !unmoved.empty()) {
        write_run_json("nothing trained");
        throw NothingTrainedError(
            concat("nothing was trained: ", unmoved.size(), " of ", method_->first_to_move().size(),
                   " trained matrices never moved (", unmoved[0], ", ...); no ", noun(),
                   " was written. Is `lr` ", *s_.lr, " meant?"));
      }
      save_kept_adapter();
      say_what_was_kept();
      write_card();
      metrics_->flush();
      if (!saved) save_state();
    }
    const std::string status = result_.signal ? "stopped" : "finished";
    write_report(status);
    write_run_json(status);  // last: a run that says so has everything
  }

  void say_which_was_kept() {
    const std::int64_t last = trainer_->steps_done();
    if (result_.kept_step != last)
      listener_.message(concat("kept: the ", noun(), " of step ", result_.kept_step, " of ", last,
                               ", whose evaluation loss is the lowest, ", result_.best->loss,
                               " (`keep` last keeps the other)"));
  }

  // Which adapter was saved, and whether the run taught anything that shows on other rows.
  void say_what_was_kept() {
    say_which_was_kept();
    if (!result_.eval_before || !result_.eval_after) return;
    const double before = result_.eval_before->loss,
                 after = watch_->kept().empty() ? result_.eval_after->loss : result_.best->loss;
    if (after > kTaught * before)
      listener_.message(concat("warning: the evaluation loss hardly fell, from ", before, " to ",
                               after, ": the ", noun(),
                               " has learnt next to nothing that helps on other "
                               "rows; more `epochs`, a higher `lr` or other rows may"));
  }

  // Continuations by the adapter as it is now, for metrics.jsonl and the report.
  void sample_now() {
    trainer_->between_steps([&] {
      metrics_->samples(trainer_->steps_done(),
                        make_samples(*model_, *method_, *in_.tokenizer, in_.eval.rows, *s_.samples,
                                     SampleKind::Adapted, [this] { return stop_.load() != 0; }));
    });
  }

  // Called once everything that counts is on the disk, and during the run, without samples then. A
  // stopped run makes no samples either, as it has no time.
  void write_report(const std::string& status) {
    ReportInput report{record(status), {}, {}, {}};
    if (status == "running") {
      report.seconds_left = seconds_left_;
      report_->write(std::move(report));
      return;
    }
    report.proofs.push_back("gradients and optimizer state exist for " + result_.trained + " only");
    report.proofs.push_back(bytes_per_parameter(
        in_.methods.text(), result_.memory, result_.base_parameters, result_.trainable_parameters));
    if (s_.verify_base && !method_->replaces_base())
      report.proofs.push_back(
          concat(changes_base(in_.methods.lora.init)
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

  // Tells whoever looks into the folder that the run has ended. The caller throws what ended it,
  // whatever becomes of this.
  void say_failed(const std::string& why) noexcept {
    try {
      const bool said = facts_.status == "nothing trained";
      ReportInput report{record(said ? facts_.status : "failed"), {}, {}, {}};
      report.failure = why;
      if (!said) write_run_json("failed");
      report_->write(std::move(report));
    } catch (...) {
    }
  }

  void write_card() {
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

  void write_run_json(const std::string& status) {
    write_file_durably(s_.out + "/run.json", json_text(record(status), 2) + "\n");
  }

  // The content of run.json. While the base is still being hashed its hash is null.
  Json record(const std::string& status) {
    if (status != "running" || base_.fingerprint->ready()) fingerprint();
    facts_.status = status;
    return run_json(s_, in_, facts_, result_);
  }
  const std::string& fingerprint() {
    if (facts_.fingerprint.empty()) facts_.fingerprint = base_.fingerprint->get();
    return facts_.fingerprint;
  }
  Json identity() { return run_identity(s_, in_, fingerprint(), facts_.dtype); }

  SharedBase own_base_;  // first: everything below lives in its memory
  SharedBase& base_;     // that one, or the one that is shared
  FinetuneRows* rows_;   // in place of files; null: none
  FinetuneSettings s_;   // what was left open is filled in once the inputs are read
  FinetuneListener& listener_;
  const std::atomic<int>& stop_;

  std::unique_ptr<OutputFolder> folder_;
  std::optional<Checkpoint> checkpoint_;  // to go on from, until it is restored
  bool finished_ = false;                 // whether it is that of a finished run
  RunInputs in_;
  RunFacts facts_;  // filled in as they become known
  std::unique_ptr<Transformer> model_;
  SharedBase::Counts before_;  // of earlier runs on the base
  std::int64_t weights_bytes_ = 0, weight_gradient_matmuls_ = 0;
  std::unique_ptr<Method> method_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<MetricsLog> metrics_;
  Clock::time_point begun_ = Clock::now(), started_;  // start of the run, and of its training
  std::optional<LiveReport> report_;                  // once there is a folder to report on
  double seconds_left_ = -1;                          // as the last report said; negative: unknown
  std::int64_t first_ = 0, recorded_ = 0;             // the step it began at; steps recorded since
  double losses_ = 0, n_losses_ = 0;                  // training losses since the last evaluation
  FinetuneResult result_;
  std::unique_ptr<EvaluationWatch> watch_;
};

}  // namespace

FinetuneResult finetune(const FinetuneSettings& settings, FinetuneListener& listener,
                        const std::atomic<int>& stop) {
  return Run(settings, nullptr, nullptr, listener, stop).go();
}

FinetuneResult finetune(const FinetuneSettings& settings, FinetuneRows rows,
                        FinetuneListener& listener, const std::atomic<int>& stop) {
  return Run(settings, &rows, nullptr, listener, stop).go();
}

FinetuneResult finetune(const FinetuneSettings& settings, SharedBase& base,
                        FinetuneListener& listener, const std::atomic<int>& stop) {
  return Run(settings, nullptr, &base, listener, stop).go();
}

}  // namespace lk
