#include <algorithm>
#include <cmath>
#include <utility>

#include "cuda/open_device.h"
#include "io/durable.h"
#include "modelfile/base_identity.h"
#include "modelfile/weight_hash.h"
#include "nn/streamed_base.h"
#include "run/base_loss.h"
#include "run/finetune_run.h"
#include "run/inference.h"
#include "run/run_settings.h"
#include "run/run_toml.h"
#include "run/size_text.h"

namespace lk {

FinetuneRun::~FinetuneRun() {
  const bool gone = method_ && method_->replaces_base();
  trainer_.reset(), shared_step_.reset(), method_.reset();
  if (gone)
    base_.loaded.reset();
  else if (&base_ != &own_base_)
    base_.take_back(model_.get());
}

FinetuneResult FinetuneRun::go() {
  validate_settings(s_, rows_ != nullptr);
  require(!s_.processes || world_, "`processes`: is for a finetune() that is given a World");
  if (!base_.backend)
    base_.backend = open_device(world_ ? own_device(*world_, s_.device) : s_.device);
  before_ = base_.begin_run();
  facts_.device = base_.backend->name(), facts_.device_description = base_.backend->description();
  facts_.dtype = parse_compute_dtype(s_.dtype, *base_.backend);
  require_possible(s_.recompute, *base_.backend);
  require_streamable(s_.streamed, *base_.backend);
  require(!s_.streamed.in_parts() || world_->local_size() == world_->size(),
          "`shard_base`: the processes read each other's GPUs, so they must run on one machine");
  refuse_input_folders(s_);
  open_folder();
  in_ = read_inputs(s_, *base_.backend, facts_.dtype, listener_,
                    checkpoint_ ? &checkpoint_->identity() : nullptr, rows_, base_.file);
  watch_ = std::make_unique<EvaluationWatch>(s_.keep == "best", s_.patience, result_);
  if (checkpoint_)  // refuses what it can before the model is read
    check_same_run(*checkpoint_, run_identity(s_, in_, "", facts_.dtype), finished_, s_.out,
                   {"base_sha256"});
  check_same_everywhere();  // before they read each other's parts of the base
  plan();
  load();
  check_same_base();
  build();
  try {
    train();
  } catch (const std::exception& e) {
    if (transport_) transport_->abandon();  // first: else the device might never end its work
    say_failed(e.what());
    throw;
  }
  // One that ends here loses nothing of the run, which is finished and says so.
  if (s_.streamed.in_parts()) leave_base(*world_, *base_.backend);
  return result_;
}

void FinetuneRun::open_folder() {
  if (leads()) {
    folder_ = std::make_unique<OutputFolder>(
        s_.out, !s_.resume,
        has_checkpoint(s_.out) ? "`resume` goes on from its checkpoint; or give a new folder"
                               : kGiveAnother);
    if (s_.resume) {
      finished_ = is_finished(s_.out);
      checkpoint_ = find_checkpoint(s_.out, *folder_);
    }
  }
  if (!world_) return;
  const std::int64_t found = world_->gather(checkpoint_ ? 1 + finished_ : 0)[0];
  finished_ = found > 1;
  if (found > 0 && !checkpoint_) checkpoint_.emplace(s_.out);
}

void FinetuneRun::plan() {
  PlanRequest request = in_.plan_request(s_, *base_.backend, facts_.dtype);
  request.device = base_.backend->name();
  request.processes = world_ ? world_->size() : 0;
  evaluation_tokens_ = request.batch_tokens();
  const std::int64_t wanted = std::max(s_.memory_limit, s_.memory);  // one of the two is 0
  // The plan counts the base, which may be there already.
  const std::int64_t free = free_memory() + base_.backend->ledger()[Tag::Weights].live_bytes;
  const bool is_asked = wanted > 0 && wanted <= free;
  const std::int64_t limit = is_asked ? wanted : free;
  Plan plan = s_.memory > 0 ? plan_within(request, limit) : plan_training(request);
  listener_.planned(request, plan);
  check_fits(request, plan, limit,
             concat(!is_asked       ? base_.backend->name()
                    : s_.memory > 0 ? "`memory`"
                                    : "`memory_limit`",
                    is_asked ? " allows" : " has"));
  check_host_fits(plan, world_ ? world_->local_size() : 1,
                  base_.backend->offloaded()[Tag::Weights].live_bytes);
  facts_.recompute = request.recompute;
  facts_.planned_peak = plan.memory.peak_bytes;
  if (s_.memory > 0)
    listener_.message(concat("`memory` ", size_text(s_.memory), ": `recompute` ",
                             recompute_text(facts_.recompute), ", planned peak ",
                             size_text(facts_.planned_peak)));
  base_.backend->set_memory_limit(wanted);
}

void FinetuneRun::load() {
  auto start = Clock::now();
  // Masters are F32 and begin as the file has them, whatever the dtype that is computed in.
  const DType dtype = replaces_base(in_.methods) ? DType::F32 : facts_.dtype;
  // A trial of a sweep may need another form of the base than the trial before it.
  if (base_.loaded &&
      (base_.loaded->weights.embedding.dtype() != dtype || base_.storage != in_.storage))
    base_.loaded.reset();
  const bool loads = !base_.loaded;
  const std::int64_t positions = *s_.seq_len + virtual_tokens(in_.methods);
  const std::vector<Row>& rows = in_.eval.rows.empty() ? in_.data.rows : in_.eval.rows;
  std::optional<double> dense_loss;
  if (loads && !checkpoint_ && quantises(in_.storage.precision)) {
    const std::int64_t limit = std::max(s_.memory_limit, s_.memory), free = free_memory();
    dense_loss = dense_base_loss(*base_.backend, *in_.model, dtype, positions, rows,
                                 limit > 0 ? std::min(limit, free) : free);
    if (!dense_loss)
      listener_.message("base: there is no memory for its dense weights, to say what it loses");
  }
  if (loads) {
    const ShardGroup group = world_ ? shard_group(*world_) : ShardGroup{};
    base_.load(in_.model, dtype, in_.storage, s_.verify_base, &group);
  }
  facts_.base_hash = base_.loaded->sha256;
  model_ = std::make_unique<Transformer>(*base_.backend, base_.loaded->config,
                                         std::exchange(base_.loaded->weights, {}), facts_.dtype,
                                         positions);
  if (loads)
    listener_.message(concat("loaded ", s_.model, ": ", model_->n_parameters(), " parameters in ",
                             dtype_name(facts_.dtype), " on ", facts_.device, " (",
                             facts_.device_description, ")"));
  if (dense_loss)
    listener_.message(base_loss_text(*dense_loss, base_loss(*model_, rows),
                                     base_precision_name(in_.storage.precision), rows.size()));
  if (loads && s_.dtype == "auto" && base_.backend->traits().faster_in_bf16)
    listener_.message("this processor takes about half the time with `dtype` bf16");
  facts_.load_seconds = seconds_since(start);
}

void FinetuneRun::check_init_base() {
  if (!in_.init) return;
  const AdapterBase init{in_.init->folder, in_.init->base};
  const std::string own = init.base.fingerprint.empty() ? "" : fingerprint();
  if (std::string doubt = check_base(init.folder, init.base, own, s_.model); !doubt.empty())
    listener_.message("warning: " + doubt);
  // The run's own setting decides; "auto" here means the file's own numbers.
  BaseStorage storage = in_.storage;
  if (storage.precision == BasePrecision::Auto) storage.precision = BasePrecision::Dense;
  for (const std::string& doubt : hold_for(*in_.model, storage, {init}).warnings)
    listener_.message("warning: " + doubt);
}

void FinetuneRun::make_trained_method() {
  const auto start = Clock::now();
  if (in_.init)
    method_ = attach_adapter(*model_, *in_.init, in_.methods.lora, true);
  else
    method_ = make_method(*model_, in_.methods);
  // What the base took while it was loaded is no part of training.
  if (method_->replaces_base()) base_.backend->reset_peaks();
  weights_bytes_ = base_.backend->ledger()[Tag::Weights].live_bytes;
  if (!changes_base(in_.methods.lora.init)) return;
  if (s_.verify_base) facts_.base_hash = weights_sha256(model_->weights());
  listener_.message(concat("`init` ", lora_init_name(in_.methods.lora.init),
                           ": took the start of A and B out of the base in ",
                           std::round(10 * seconds_since(start)) / 10,
                           " s; the adapter is saved for the base as it was, at twice the rank"));
}

void FinetuneRun::make_trainer() {
  TrainerConfig config;
  config.adamw.weight_decay = static_cast<float>(s_.weight_decay);
  config.schedule = Schedule{parse_schedule_kind(*s_.schedule), *s_.lr, *s_.warmup, in_.steps};
  config.loraplus_ratio = s_.loraplus_ratio.value_or(0);
  config.clip = s_.clip;
  config.label_smoothing = s_.label_smoothing;
  config.seed = s_.seed;
  config.log = [this](const std::string& line) { listener_.message(line); };
  if (world_) {
    transport_ = open_transport(*world_, *base_.backend, config.log);
    shared_step_ =
        std::make_unique<SharedStep>(*model_, *method_, transport_.get(), world_->rank(),
                                     world_->size(), SharedStep::Settings{s_.clip, s_.fast_reduce});
    shared_step_->join(config);
  }
  trainer_ = std::make_unique<Trainer>(*model_, *method_, config);
}

void FinetuneRun::build() {
  check_init_base();
  make_trained_method();
  method_->lay_out_for_training();
  make_trainer();
  model_->set_recompute(facts_.recompute);
  if (checkpoint_) {
    const Json now = identity(), &before = checkpoint_->identity();
    std::vector<std::string> may_differ;
    if (before["base_sha256"] != now["base_sha256"] &&
        before["base_sha256"] == earlier_fingerprint(s_.model))
      may_differ.push_back("base_sha256");
    const std::string note = check_same_run(*checkpoint_, now, finished_, s_.out, may_differ);
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
  if (!leads()) return;
  metrics_ =
      std::make_unique<MetricsLog>(s_.out, trainer_->steps_done(), s_.tensorboard,
                                   [this](const std::string& line) { listener_.message(line); });
  if (!rows_) write_file_durably(s_.out + "/run.toml", run_toml(s_));
  if (trainer_->steps_done() == 0) metrics_->settings(run_toml(s_));
  write_run_json("running");
  report_.emplace(s_.out);
  attempt([&] { write_report("running"); });
}

FinetuneResult finetune(const FinetuneSettings& settings, FinetuneListener& listener,
                        const std::atomic<int>& stop) {
  return FinetuneRun(settings, nullptr, nullptr, listener, stop).go();
}

FinetuneResult finetune(const FinetuneSettings& settings, FinetuneRows rows,
                        FinetuneListener& listener, const std::atomic<int>& stop) {
  return FinetuneRun(settings, &rows, nullptr, listener, stop).go();
}

FinetuneResult finetune(const FinetuneSettings& settings, SharedBase& base,
                        FinetuneListener& listener, const std::atomic<int>& stop) {
  return FinetuneRun(settings, nullptr, &base, listener, stop).go();
}

}  // namespace lk
