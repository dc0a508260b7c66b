// A whole fine-tuning run as one call: what tools/finetune does, also for embedders.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lora/proof.h"
#include "lora/rank_patterns.h"
#include "lora/trainer.h"
#include "nn/evaluation.h"
#include "run/plan.h"
#include "run/run_progress.h"
#include "text/dataset.h"

namespace lk {

// run/run_identity.cpp says of each member whether it makes another run: a new one does not compile
// before it stands there.
struct FinetuneSettings {
  // `data` and `eval_data` may also be a pipe or, one of them, "-" for standard input.
  std::string model = {}, data = {}, out = {};
  std::optional<std::int64_t> rank = {};  // unset: 16, or what the narrowest projection allows
  std::optional<double> alpha = {};       // unset: the rank, so that the scale is 1
  double dropout = 0;
  std::vector<std::string> methods = {"lora"};      // run/methods.h
  std::optional<std::int64_t> virtual_tokens = {};  // of prompt, prefix, llama-adapter; unset: 20
  std::string prompt_text = {};                     // what prompt starts as; empty: noise
  std::int64_t prefix_hidden = 0;   // > 0: prefix is made by an MLP of this hidden size
  std::int64_t adapter_layers = 0;  // of llama-adapter, from the top; 0: all but the first two
  std::int64_t bottleneck = 64;     // rows of a bottleneck's down projection
  std::string bottleneck_kind = "pfeiffer";  // BottleneckConfig::of_kind()
  // Of lora (empty: all-linear), ia3 and bitfit (empty: PEFT's defaults).
  std::vector<std::string> targets = {};
  // LoRA's variants: lora/rank_patterns.h, lora/lora_init.h, lora/lora_plus.h.
  std::vector<std::int64_t> layers = {};  // empty: all
  ByPattern<std::int64_t> rank_pattern = {};
  ByPattern<double> alpha_pattern = {};
  bool rslora = false;  // scale alpha / sqrt(rank)
  bool dora = false;    // lora/dora.h
  LoraInit init = LoraInit::Kaiming;
  std::optional<double> loraplus_ratio = {};  // learning rate of B in units of lr
  std::optional<std::int64_t> steps = {};     // or
  std::optional<double> epochs = {};          // only one of the two; neither: default_epochs()
  std::int64_t batch = 8, grad_accum = 1;
  std::optional<std::int64_t> seq_len = {};  // unset: 1024, or what the model has if that is less
  // What of these three is unset is filled in by run/defaults.h.
  std::optional<double> lr = {};
  std::optional<std::string> schedule = {};
  std::optional<std::int64_t> warmup = {};
  double weight_decay = 0, clip = 1.0, label_smoothing = 0;
  std::uint64_t seed = 0;
  std::string device = "auto", dtype = "auto";
  // How many processes share the run's steps: as many as the World that finetune() is given has. Unset
  // without one.
  std::optional<std::int64_t> processes = {};
  bool fast_reduce = false;  // one exchange of gradients a step: dist/shared_step.h
  // In how many bits the frozen base is held, and modules of it that stay dense all the same.
  BasePrecision base_precision = BasePrecision::Auto;
  std::vector<std::string> keep_dense = {};
  // Whether E4M3 matrices of the base are multiplied as such, by activations rounded to E4M3: "auto"
  // (where the device does it in hardware), "on", "off".
  std::string fp8_products = "auto";
  std::string init_adapter = {};
  bool shuffle = true;
  LongRows long_rows = LongRows::Error;
  bool skip_bad_rows = false;  // leave out rows that can't be read, instead of an InputError
  bool packing = false;  // a micro-batch is `batch` bins of seq_len tokens instead of `batch` rows
  std::string format = "auto";
  std::optional<std::string> chat_template = {};
  TrainOn train_on = TrainOn::Assistant;
  Columns columns = {};                    // which keys of the data stand for a format's
  std::optional<std::string> system = {};  // the system turn of chats that have none
  // The base for whoever opens the adapter: its name on the Hugging Face hub, or a Hugging Face folder
  // of it, written as given. Empty: hub_name() of the model's files; where these give none, `model`.
  std::string base_name = {};
  std::string eval_data = {};
  // The share of `data` to evaluate on instead of training on it, where there is no eval_data; unset:
  // a tenth, if there are enough rows (run/defaults.h).
  std::optional<double> eval_split = {};
  std::int64_t eval_rows = -1;
  std::optional<std::int64_t> eval_every = {};  // unset: default_eval_every(); 0: at both ends only
  std::string keep =
      "auto";  // which adapter is saved: "last", or "best" by evaluation; "auto": best
               // if there are evaluations
  std::int64_t patience = 0;  // evaluations in a row without a new best that end the run; 0: never
  std::optional<std::int64_t> save_every = {};
  bool resume = false;
  Recompute recompute = {};       // what training computes again instead of keeping it
  StreamedLayers streamed = {};   // layers of the base that wait elsewhere; on a GPU only
  std::int64_t memory_limit = 0;  // bytes; 0: all that the device has free
  std::int64_t memory = 0;        // bytes; not 0: the limit, and `recompute` is chosen to fit it
  bool verify_base = true;        // compare the SHA-256 of all base weights before and after
  std::int64_t show_rows = 0;
  // How many evaluation rows report.html shows with continuations, without and with the adapter.
  std::optional<std::int64_t> samples = {};  // unset: 3 where there are such rows, else 0
  std::int64_t sample_every = 0;             // also every N steps, into metrics.jsonl
  bool tensorboard = false;                  // also write event files for TensorBoard to `out`
};

// How far a run is.
struct StepProgress {
  std::int64_t total_steps = 0;
  std::int64_t peak_bytes = 0;   // of memory, so far
  double tokens_per_second = 0;  // median of the last steps
  double seconds_left = -1;      // by medians too (run/pace.h); negative: unknown
};

// Hears what happens during a run. All calls come from the thread that called finetune().
struct FinetuneListener {
  virtual ~FinetuneListener() = default;
  virtual void message(const std::string& /*text*/) {}  // one line: what happens now, or a finding
  virtual void rows(const std::string& /*text*/) {}     // for --show-rows
  virtual void planned(const PlanRequest&, const Plan&) {}
  virtual void stepped(const StepReport&, const StepProgress&) {}
  virtual void evaluated(std::int64_t /*step*/, const Evaluation&) {}
  // All steps are done. From now on `stop` leaves out the samples that are still to be written, and
  // nothing else.
  virtual void trained() {}
};

// The numbers of RunProgress are those of the whole run, however often it was resumed.
struct FinetuneResult : RunProgress {
  std::int64_t steps = 0;
  std::optional<Evaluation> eval_after;
  std::int64_t trainable_parameters = 0, base_parameters = 0;  // base: frozen ones
  std::string trained = "A and B";                             // or "A, B and the magnitudes"
  MemoryReport memory;
  std::int64_t kept_step = 0;    // whose adapter was saved; 0 if that is as it began
  bool out_of_patience = false;  // the run ended before its last step
  int signal = 0;                // not 0: the signal that stopped the run, after saving
};

// Rows that a program made itself: by make_row(), make_chat_rows() or on its own.
struct FinetuneRows {
  std::vector<Row> train = {}, eval = {};
  // What they were made of, for the run's record and the commands that it prints: whether of chats, and
  // the system turn that every chat begins with. Unset: nobody knows.
  std::optional<bool> chats = {};
  std::optional<std::string> system = {};
};

// Runs a fine-tuning. `stop` is checked between steps: a number, a signal's or any other, ends the run
// after a checkpoint is saved. No evaluation is made then: with `keep` best the adapter saved is that
// of the lowest one so far, which may be many steps back (FinetuneResult::kept_step, and a message).
// Throws the errors of tensor/error.h; the output folder then holds the last
// complete state.
FinetuneResult finetune(const FinetuneSettings& settings, FinetuneListener& listener,
                        const std::atomic<int>& stop);

// The same on rows in memory; `data` and `eval_data` of the settings stay empty. No run.toml is
// written, as no flags give these rows.
FinetuneResult finetune(const FinetuneSettings& settings, FinetuneRows rows,
                        FinetuneListener& listener, const std::atomic<int>& stop);

// One process's part of a run that those of `world` (dist/world.h) share: a step's micro-batches are
// shared out among them. All are to be given equal settings. Only the first writes to `out`, calls the
// listener and has the whole result; a signal that reaches one stops all. An error of one ends all with
// the same exit code.
class World;
FinetuneResult finetune(const FinetuneSettings& settings, World& world, FinetuneListener& listener,
                        const std::atomic<int>& stop);

// The same on a base that several runs take in turn (run/shared_base.h): the first of them loads it,
// and `model`, `device` and `dtype` of the others are the first one's.
struct SharedBase;
FinetuneResult finetune(const FinetuneSettings& settings, SharedBase& base,
                        FinetuneListener& listener, const std::atomic<int>& stop);

}  // namespace lk
