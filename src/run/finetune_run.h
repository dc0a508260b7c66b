// One run of finetune(), from its settings to its last file: inside src/run only. finetune.cpp begins
// it, finetune_train.cpp trains and saves, finetune_end.cpp proves, reports and records, and
// finetune_shared.cpp has what several processes agree on.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "dist/shared_step.h"
#include "dist/world.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "run/evaluation_watch.h"
#include "run/finetune.h"
#include "run/live_report.h"
#include "run/pace.h"
#include "run/resume.h"
#include "run/run_files.h"
#include "run/run_identity.h"
#include "run/run_record.h"
#include "run/shared_base.h"
#include "run/shared_run.h"

namespace lk {

class FinetuneRun {
 public:
  // `shared`: the base to run on, loaded already or by this run; null: one of its own. `world`: the
  // processes that share the run; null: this one alone.
  FinetuneRun(const FinetuneSettings& settings, FinetuneRows* rows, SharedBase* shared,
              FinetuneListener& listener, const std::atomic<int>& stop, World* world = nullptr)
      : base_(shared ? *shared : own_base_),
        rows_(rows),
        world_(world),
        s_(settings),
        listener_(listener),
        stop_(stop) {}
  ~FinetuneRun();

  FinetuneResult go();

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  // Whether this process writes to the folder.
  bool leads() const { return !world_ || world_->leads(); }
  void open_folder();
  // Refuses processes that were started as others, or on other inputs; once they are loaded, on other
  // weights.
  void check_same_everywhere();
  void check_same_base();
  void make_trainer();
  // What this process may take, before any of those that share its device's memory has taken more.
  std::int64_t free_memory();
  // The signal that stops all processes, once one has it; 0: none.
  int agreed_stop();
  EvaluationShare evaluation_share();
  // Checks that all processes have the same numbers in what they train, and together two moments of each.
  void prove_replicas();
  // What the leading process saves of the optimizer, if several share it: all call this, at the same time.
  std::optional<WholeMoments> gather_moments();

  // Finds out before a weight is read whether the run is out of memory.
  void plan();
  void load();

  // An adapter to start from was trained on this base, or does not say on which.
  void check_init_base();
  void make_trained_method();
  void build();
  std::optional<Evaluation> evaluate_now();
  void train();

  // Writes the reports that are due. The device may be a step ahead of them; with `drain` all are
  // written.
  void report_steps(bool drain);

  // How long the run will still take after `step` steps; negative: unknown.
  double seconds_left(std::int64_t step) const;

  // The checkpoint comes first: a run killed in between can go on, whereas an adapter without one is
  // no state to go on from.
  void save(const std::optional<WholeMoments>& moments);
  void save_state(const std::optional<WholeMoments>& moments);
  void save_kept_adapter();

  const char* noun() const { return method_->replaces_base() ? "model" : "adapter"; }

  // Does what a run can go on without, as it will be tried again: a disk that is full now may have
  // room later, and what was saved before is as it was. Returns whether it was done.
  bool attempt(const std::function<void()>& work);

  // Saves, checks the proofs, then writes the rest: a failing check must not lose anything. The
  // checkpoint of a finished run stays, so that more steps can go on from it. It may fail once: the
  // adapter matters more.
  void finish();
  // `unmoved`: names of trained matrices that are as they began. Throws NothingTrainedError if all are.
  void check_moved(const std::vector<std::string>& unmoved);
  void say_which_was_kept();

  // Which adapter was saved, and whether the run taught anything that shows on other rows.
  void say_what_was_kept();

  // Continuations by the adapter as it is now, for metrics.jsonl and the report.
  void sample_now();

  // Called once everything that counts is on the disk, and during the run, without samples then. A
  // stopped run makes no samples either, as it has no time.
  void write_report(const std::string& status);

  // Tells whoever looks into the folder that the run has ended. The caller throws what ended it,
  // whatever becomes of this.
  void say_failed(const std::string& why) noexcept;
  void write_card();
  void write_run_json(const std::string& status);

  // The content of run.json. While the base is still being hashed its hash is null.
  Json record(const std::string& status);
  const std::string& fingerprint();
  Json identity() { return run_identity(s_, in_, fingerprint(), facts_.dtype); }

  SharedBase own_base_;  // first: everything below lives in its memory
  SharedBase& base_;     // that one, or the one that is shared
  FinetuneRows* rows_;   // in place of files; null: none
  World* world_;         // null: this process alone
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
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<SharedStep> shared_step_;  // null without a World
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<MetricsLog> metrics_;
  Clock::time_point begun_ = Clock::now();
  std::optional<LiveReport> report_;  // once there is a folder to report on
  Pace pace_;
  std::int64_t evaluation_tokens_ = 0;  // at a time: what a micro-batch may have, as the plan found
  std::int64_t first_ = 0, recorded_ = 0;  // the step it began at; steps recorded since
  double losses_ = 0, n_losses_ = 0;       // training losses since the last evaluation
  FinetuneResult result_;
  std::unique_ptr<EvaluationWatch> watch_;
};

}  // namespace lk
