#include "lora/finetune.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "cuda/open_device.h"
#include "io/durable.h"
#include "io/json.h"
#include "lora/adapter_io.h"
#include "lora/checkpoint.h"
#include "lora/inference.h"
#include "lora/model_card.h"
#include "lora/report.h"
#include "lora/run_files.h"
#include "lora/run_settings.h"
#include "nn/load.h"
#include "nn/prefetch.h"
#include "text/sampler.h"
#include "version.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void require(bool ok, const std::string& message) {
  if (!ok) throw UsageError(message);
}

// One run, in the order in which it happens.
class Run {
 public:
  Run(const FinetuneSettings& settings, FinetuneListener& listener, const std::atomic<int>& stop)
      : s_(settings), listener_(listener), stop_(stop) {}

  FinetuneResult go() {
    validate_settings(s_);
    backend_ = open_device(s_.device);
    dtype_ = parse_compute_dtype(s_.dtype, *backend_);
    require_possible(s_.recompute, *backend_);
    choose_lora();
    folder_ = std::make_unique<OutputFolder>(s_.out, !s_.resume);
    read_data();
    arrange();
    plan();
    load();
    build();
    train();
    return result_;
  }

 private:
  void choose_lora() {
    lora_.shape = {s_.rank, s_.alpha.value_or(static_cast<double>(s_.rank)),
                   static_cast<float>(s_.dropout)};
    lora_.targets = s_.targets;
    lora_.seed = s_.seed;
    if (s_.init_adapter.empty()) return;
    init_ = open_adapter(s_.init_adapter);
    const float dropout = lora_.shape.dropout;
    lora_ = init_->config;  // an adapter brings its rank, alpha and modules
    lora_.shape.dropout = dropout;
    lora_.seed = s_.seed;
    listener_.message(concat("starting from ", s_.init_adapter, ": rank ", lora_.shape.rank,
                             ", alpha ", lora_.shape.alpha, ", ", lora_.targets.size(),
                             " modules"));
  }

  // Out of memory is known here, before a weight is read: the largest micro-batch there can be is
  // made of the longest rows, or of the fullest bins, each planned as one row.
  void plan() {
    PlanRequest request;
    request.model = config_, request.lora = lora_;
    request.compute_dtype = dtype_, request.on_cpu = backend_->is_cpu();
    request.batch = s_.batch, request.grad_accum = s_.grad_accum, request.seq_len = s_.seq_len;
    request.row_lengths = s_.packing ? tokens_of(sampler_->epoch(0), row_lengths()) : row_lengths();
    std::sort(request.row_lengths.rbegin(), request.row_lengths.rend());
    request.row_lengths.resize(static_cast<std::size_t>(s_.batch), request.row_lengths.front());
    request.recompute = s_.recompute;
    const std::int64_t wanted = std::max(s_.memory_limit, s_.memory);  // one of them is 0
    const std::int64_t free = backend_->free_memory();
    const std::int64_t limit = wanted > 0 ? std::min(wanted, free) : free;
    Plan plan = s_.memory > 0 ? plan_within(request, limit) : plan_training(request);
    listener_.planned(request, plan);
    check_fits(request, plan, limit, backend_->name());
    recompute_ = request.recompute;
    planned_peak_ = plan.memory.peak_bytes;
    if (s_.memory > 0)
      listener_.message(concat("--memory ", s_.memory >> 20, " MiB: --recompute ",
                               recompute_text(recompute_), ", planned peak ", planned_peak_ >> 20,
                               " MiB"));
    if (wanted > 0) backend_->set_memory_limit(wanted);
  }

  void load() {
    auto start = Clock::now();
    LoadedModel loaded = load_weights(*backend_, s_.model, dtype_);
    fingerprint_ = loaded.fingerprint;
    model_ = std::make_unique<Transformer>(*backend_, loaded.config, std::move(loaded.weights),
                                           dtype_, s_.seq_len);
    weights_bytes_ = backend_->ledger()[Tag::Weights].live_bytes;
    listener_.message(concat("loaded ", s_.model, ": ", model_->n_parameters(), " parameters in ",
                             dtype_name(dtype_), " on ", backend_->name(), " (",
                             backend_->description(), ")"));
    load_seconds_ = seconds_since(start);
    if (s_.verify_base) base_hash_ = weights_sha256(*backend_, model_->weights());
  }

  void read_data() {
    ModelHead head = read_model_head(s_.model);
    config_ = head.config;
    if (lora_.targets.empty()) lora_.targets = default_targets(config_);
    tokenizer_ = std::move(head.tokenizer);
    require(s_.seq_len <= config_.max_position, concat("--seq-len ", s_.seq_len, ": the model has ",
                                                       config_.max_position, " positions"));
    DatasetOptions options{s_.seq_len, s_.truncate, -1, s_.format};
    data_ = load_dataset(s_.data, *tokenizer_, s_.chat_template, options);
    listener_.message(concat("data: ", s_.data, ": format ", data_.format, ", ", data_.rows.size(),
                             " rows, ", data_.tokens, " tokens, ", data_.supervised_tokens,
                             " supervised, ", data_.rows_ending_in_eos,
                             " rows end in a stop token"));
    if (data_.rows_truncated)
      listener_.message(concat("truncated ", data_.rows_truncated, " rows, ",
                               data_.tokens_truncated, " tokens lost"));
    for (std::int64_t i = 0; i < std::min<std::int64_t>(s_.show_rows, std::ssize(data_.rows)); ++i)
      listener_.rows(show_row(data_.rows[static_cast<std::size_t>(i)], *tokenizer_, false));
    if (!s_.eval_data.empty()) {
      options.max_rows = s_.eval_rows;
      eval_ = load_dataset(s_.eval_data, *tokenizer_, s_.chat_template, options);
    }
  }

  std::vector<std::int64_t> row_lengths() const {
    std::vector<std::int64_t> lengths;
    for (const Row& row : data_.rows) lengths.push_back(std::ssize(row.ids));
    return lengths;
  }

  // Which rows each step will see, and how many steps that makes.
  void arrange() {
    if (s_.packing) {
      sampler_.emplace(row_lengths(), s_.seq_len, s_.batch, s_.shuffle, s_.seed);
      const auto rows = static_cast<double>(data_.rows.size());
      const auto bins = static_cast<double>(sampler_->bins_per_epoch());
      const double full =
          static_cast<double>(data_.tokens) / bins / static_cast<double>(s_.seq_len);
      packing_ = {
          {"bins", sampler_->bins_per_epoch()}, {"full", full}, {"rows_per_bin", rows / bins}};
      char text[160];
      std::snprintf(text, sizeof text,
                    "packing: %.0f bins of %lld tokens an epoch, %.1f %% full, %.1f rows a bin",
                    bins, static_cast<long long>(s_.seq_len), 100 * full, rows / bins);
      listener_.message(text);
    } else {
      sampler_.emplace(std::ssize(data_.rows), s_.batch, s_.shuffle, s_.seed);
    }
    const double per_step = static_cast<double>(s_.batch * s_.grad_accum);
    const auto per_epoch = static_cast<double>(sampler_->bins_per_epoch());
    const double steps = std::ceil(s_.epochs.value_or(1.0) * per_epoch / per_step);
    steps_ = s_.steps ? *s_.steps : std::max<std::int64_t>(1, static_cast<std::int64_t>(steps));
    require(s_.warmup <= steps_,
            concat("--warmup ", s_.warmup, ": the run has ", steps_, " steps"));
  }

  void build() {
    adapter_ = init_ ? attach_adapter(*model_, *init_, lora_, true)
                     : std::make_unique<Adapter>(*model_, lora_);
    TrainerConfig config;
    config.adamw.weight_decay = static_cast<float>(s_.weight_decay);
    config.schedule = Schedule{parse_schedule_kind(s_.schedule), s_.lr, s_.warmup, steps_};
    config.clip = s_.clip;
    config.seed = s_.seed;
    config.log = [this](const std::string& line) { listener_.message(line); };
    trainer_ = std::make_unique<Trainer>(*model_, *adapter_, config);
    model_->set_recompute(recompute_);
    weights_bytes_ += model_->strip_bytes();
    identity_ = run_identity(s_, steps_, fingerprint_, data_, dtype_, lora_);
    if (s_.resume && has_checkpoint(s_.out)) {
      std::vector<std::string> may_differ;
      if (s_.schedule == "constant") may_differ.push_back("steps");
      load_checkpoint(s_.out, *adapter_, *trainer_, identity_, may_differ);
      listener_.message(concat("resumed at step ", trainer_->steps_done(), " of ", steps_));
    } else if (s_.resume) {
      listener_.message(concat("--resume: ", s_.out, " holds no checkpoint; starting at step 0"));
    }
    result_.trainable_parameters = adapter_->n_parameters();
    result_.base_parameters = model_->n_parameters();
    metrics_ = std::make_unique<MetricsLog>(s_.out, trainer_->steps_done(), s_.tensorboard);
    write_run_json("running");
  }

  std::optional<Evaluation> evaluate_now() {
    if (s_.eval_data.empty()) return std::nullopt;
    Evaluation e = evaluate(*model_, eval_.rows,
                            std::max<std::int64_t>(s_.seq_len, s_.batch * s_.seq_len / 2));
    metrics_->evaluation(trainer_->steps_done(), e);
    listener_.evaluated(trainer_->steps_done(), e);
    return e;
  }

  void train() {
    first_ = trainer_->steps_done();
    const std::int64_t matmuls_before = backend_->weight_gradient_matmuls();
    if (first_ == 0) result_.eval_before = evaluate_now();
    started_ = Clock::now();
    Prefetch<std::vector<HostBatch>> batches([this](std::int64_t step) { return lay_out(step); },
                                             first_, steps_, 2);
    while (trainer_->steps_done() < steps_ && !stop_.load()) {
      trainer_->submit(batches.next());
      const std::int64_t step = trainer_->steps_done();
      const bool last = step == steps_;
      const bool evaluates = s_.eval_every > 0 && step % s_.eval_every == 0 && !last;
      const bool saves = s_.save_every > 0 && step % s_.save_every == 0 && !last;
      report_steps(evaluates || saves);
      if (evaluates) evaluate_now();
      if (saves) save();
    }
    report_steps(true);
    result_.signal = trainer_->steps_done() < steps_ ? stop_.load() : 0;
    result_.steps = trainer_->steps_done();
    result_.tokens_per_second =
        result_.seconds > 0 ? static_cast<double>(tokens_) / result_.seconds : 0;
    weight_gradient_matmuls_ = backend_->weight_gradient_matmuls() - matmuls_before;
    if (!backend_->is_cpu()) {
      std::string why = trainer_->why_not_recorded();
      if (why.empty() && result_.recorded_steps == 0)
        why = "no two steps in a row had batches of the same shapes";
      listener_.message(concat("CUDA graph: ", result_.recorded_steps, " of ",
                               trainer_->steps_done() - first_, " steps ran as one launch",
                               why.empty() ? "" : ": ", why));
    }
    finish();
  }

  // The device may be a step ahead of its reports; `drain`: now they catch up.
  void report_steps(bool drain) {
    while (std::optional<StepReport> report = trainer_->next_report(drain)) {
      if (report->step == first_ + 1) result_.first_loss = report->loss;
      result_.last_loss = report->loss;
      result_.seconds += report->seconds;
      tokens_ += report->tokens;
      result_.recorded_steps += report->recorded;
      metrics_->step(*report);
      const double done = static_cast<double>(report->step - first_);
      listener_.stepped(
          *report, steps_, backend_->ledger().total().live_bytes,
          seconds_since(started_) / done * static_cast<double>(steps_ - report->step));
    }
  }

  // The micro-batches of a step. While training goes on, only the prefetch thread calls it.
  std::vector<HostBatch> lay_out(std::int64_t step) const {
    std::vector<HostBatch> batches;
    for (std::int64_t g = 0; g < s_.grad_accum; ++g) {
      std::vector<const Row*> rows;
      for (std::int64_t i : sampler_->batch(step * s_.grad_accum + g))
        rows.push_back(&data_.rows[static_cast<std::size_t>(i)]);
      batches.push_back(make_host_batch(rows));
    }
    return batches;
  }

  void save() {
    metrics_->flush();
    save_adapter(s_.out, *adapter_, s_.model, fingerprint_);
    save_checkpoint(s_.out, *adapter_, *trainer_, identity_);
  }

  // The proofs, then the files. An interrupted run saves first: nothing may be lost to a failing
  // check.
  void finish() {
    const std::int64_t micro_steps = (trainer_->steps_done() - first_) * s_.grad_accum;
    if (result_.signal != 0 || s_.save_every > 0) {
      save();
    }
    if (result_.signal == 0) result_.eval_after = evaluate_now();
    prove_memory(*backend_, *adapter_, weights_bytes_, weight_gradient_matmuls_, micro_steps);
    if (s_.verify_base) {
      std::string after = weights_sha256(*backend_, model_->weights());
      check(after == base_hash_, "the base weights changed during training: SHA-256 was ",
            base_hash_, ", is ", after);
    }
    matmuls_per_micro_step_ = micro_steps ? weight_gradient_matmuls_ / micro_steps : 0;
    result_.memory = memory_report(*backend_);
    if (result_.signal == 0) {
      std::vector<std::string> unmoved = trainer_->unmoved();
      if (trainer_->steps_done() > first_ && !unmoved.empty()) {
        write_run_json("nothing trained");
        throw NothingTrainedError(concat("nothing was trained: B of ", unmoved.size(), " of ",
                                         adapter_->layers().size(), " modules never moved (",
                                         unmoved[0], ", ...); no adapter was written. Is --lr ",
                                         s_.lr, " meant?"));
      }
      metrics_->flush();
      save_adapter(s_.out, *adapter_, s_.model, fingerprint_);
      write_card();
    }
    const std::string status = result_.signal ? "stopped" : "finished";
    write_run_json(status);
    write_report(status);
  }

  // After everything that counts is on the disk. A stopped run has no time for samples.
  void write_report(const std::string& status) {
    ReportInput report{run_json(status), read_metrics(s_.out), {}, {}};
    report.proofs.push_back("gradients and optimizer state exist for A and B only");
    if (s_.verify_base) report.proofs.push_back("base weights unchanged, SHA-256 " + base_hash_);
    const std::int64_t n = result_.signal ? 0 : s_.samples.value_or(s_.eval_data.empty() ? 0 : 3);
    try {
      report.samples = make_samples(*model_, *adapter_, *tokenizer_, eval_.rows, n);
    } catch (const OutOfMemoryError& e) {
      listener_.message(concat("report.html: no samples: ", e.what()));
    }
    write_file_durably(s_.out + "/report.html", report_html(report));
  }

  void write_card() const {
    const CardFacts facts{fingerprint_, dtype_name(dtype_),        backend_->description(),
                          data_.format, std::ssize(data_.rows),    data_.supervised_tokens,
                          lora_.shape,  adapter_->target_modules()};
    write_file_durably(s_.out + "/README.md", model_card(s_, result_, facts));
  }

  void write_run_json(const std::string& status) {
    write_file_durably(s_.out + "/run.json", run_json(status).dump(2) + "\n");
  }

  Json run_json(const std::string& status) const {
    Json run = {
        {"status", status},
        {"version", kVersion},
        {"settings",
         {{"model", s_.model},
          {"data", s_.data},
          {"out", s_.out},
          {"init_adapter", s_.init_adapter.empty() ? Json(nullptr) : Json(s_.init_adapter)},
          {"eval_data", s_.eval_data.empty() ? Json(nullptr) : Json(s_.eval_data)},
          {"eval_rows", s_.eval_rows},
          {"eval_every", s_.eval_every},
          {"save_every", s_.save_every},
          {"device", s_.device},
          {"recompute", recompute_text(recompute_)},
          {"memory", s_.memory > 0 ? Json(s_.memory) : Json(nullptr)},
          {"format", data_.format},
          {"run", identity_}}},
        {"device", {{"name", backend_->name()}, {"description", backend_->description()}}},
        {"dtype", dtype_name(dtype_)},
        {"base", {{"path", s_.model}, {"sha256", fingerprint_}, {"weights_sha256", base_hash_}}},
        {"parameters", {{"base", model_->n_parameters()}, {"trainable", adapter_->n_parameters()}}},
        {"data",
         {{"rows", std::ssize(data_.rows)},
          {"rows_read", data_.rows_read},
          {"rows_truncated", data_.rows_truncated},
          {"tokens", data_.tokens},
          {"supervised_tokens", data_.supervised_tokens},
          {"rows_ending_in_eos", data_.rows_ending_in_eos},
          {"packing", packing_}}},
        {"planned_peak_bytes", planned_peak_},
        {"load_seconds", load_seconds_}};
    if (status != "running") {
      run["memory"] = memory_to_json(result_.memory);
      run["weight_gradient_matmuls_per_micro_step"] = matmuls_per_micro_step_;
      run["adapter_matrices"] = std::ssize(adapter_->parameters());
      run["result"] = {{"steps", result_.steps},
                       {"first_loss", result_.first_loss},
                       {"last_loss", result_.last_loss},
                       {"seconds", result_.seconds},
                       {"recorded_steps", result_.recorded_steps},
                       {"tokens_per_second", result_.tokens_per_second}};
      if (result_.eval_before)
        run["result"]["eval_before"] = evaluation_to_json(*result_.eval_before);
      if (result_.eval_after) run["result"]["eval_after"] = evaluation_to_json(*result_.eval_after);
    }
    return run;
  }

  const FinetuneSettings& s_;
  FinetuneListener& listener_;
  const std::atomic<int>& stop_;

  std::unique_ptr<Backend> backend_;  // first: everything below lives in its memory
  DType dtype_ = DType::F32;
  LoraConfig lora_;
  std::optional<AdapterFile> init_;
  ModelConfig config_;
  std::unique_ptr<OutputFolder> folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string fingerprint_, base_hash_;
  std::unique_ptr<Transformer> model_;
  std::int64_t weights_bytes_ = 0, weight_gradient_matmuls_ = 0, matmuls_per_micro_step_ = 0;
  Recompute recompute_;  // as asked for, or as chosen
  std::int64_t planned_peak_ = 0;
  double load_seconds_ = 0;
  Dataset data_, eval_;
  std::optional<Sampler> sampler_;
  Json packing_;  // null without it
  std::int64_t steps_ = 0;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<Trainer> trainer_;
  Json identity_;
  std::unique_ptr<MetricsLog> metrics_;
  Clock::time_point started_;
  std::int64_t first_ = 0, tokens_ = 0;  // the step it began at; what it has trained on since
  FinetuneResult result_;
};

}  // namespace

FinetuneResult finetune(const FinetuneSettings& settings, FinetuneListener& listener,
                        const std::atomic<int>& stop) {
  return Run(settings, listener, stop).go();
}

}  // namespace lk
