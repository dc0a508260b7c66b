// finetune: LoRA training of a GGUF or Hugging Face model on a text file.
#include <algorithm>
#include <cstdio>

#include "io/paths.h"
#include "lora_flags.h"
#include "program.h"
#include "row_flags.h"
#include "run/adapter_use.h"
#include "run/finetune.h"
#include "run/methods.h"
#include "settings_file.h"
#include "sweep_flags.h"

namespace {

using namespace lk;

// Flags whose text is converted to a setting.
struct Text {
  std::optional<std::string> targets, methods;
  program::LoraFlags lora;
  std::string alpha_pattern, init = "kaiming";
  std::string memory, memory_limit, recompute = "none";
  program::LongRowFlags long_rows;
  std::string train_on = "assistant", columns;
  std::optional<std::string> sweep;
  bool no_shuffle = false, no_verify = false;
};

// Flags added by `add` stand under this heading of --help.
void in_group(CLI::App& app, const char* heading, const std::function<void()>& add) {
  const std::size_t before = app.get_options().size();
  add();
  const std::vector<CLI::Option*> all = app.get_options([](const CLI::Option*) { return true; });
  for (std::size_t i = before; i < all.size(); ++i) all[i]->group(heading);
}

void add_data_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  const auto& whole = program::whole_number();
  app.add_option("--model", s.model, ".gguf file or Hugging Face folder")->required();
  app.add_option("--data", s.data, program::kDataHelp)->required();
  app.add_option("--format", s.format, program::kFormatHelp);
  app.add_option("--columns", text.columns, program::kColumnsHelp)->type_name(program::kList);
  app.add_option("--system", s.system, program::kSystemHelp);
  app.add_option("--template", s.chat_template, "chat template by name, if the model's is unknown");
  app.add_option("--train-on", text.train_on, program::kTrainOnHelp)->capture_default_str();
  app.add_option("--seq-len", s.seq_len,
                 "longest row (1024, or what the model has if that is less)")
      ->check(whole);
  program::add_long_row_flags(app, text.long_rows);
  app.add_flag("--skip-bad-rows", s.skip_bad_rows, "leave out and count rows that can't be read");
  app.add_flag("--packing", s.packing, "a micro-batch is --batch bins of --seq-len tokens of rows");
  app.add_flag("--no-shuffle", text.no_shuffle, "rows in file order, wrapping round");
  app.add_option("--show-rows", s.show_rows, "print the first N rows, trained tokens marked")
      ->check(whole);
}

void add_adapter_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  const auto& real = program::real_number();
  const auto& whole = program::whole_number();
  app.add_option("--method", text.methods,
                 "LIST of lora, prompt, prefix, llama-adapter, bottleneck, bitfit, ia3: what is "
                 "trained; see docs/methods.md")
      ->default_str("lora");
  app.add_option("--rank", s.rank, "rank of A and B (16)")->check(whole);
  app.add_option("--alpha", s.alpha, "scale is alpha / rank (default: the rank)")->check(real);
  app.add_option("--dropout", s.dropout, "on the adapter's input")->check(real);
  app.add_option("--targets", text.targets, program::kTargetsHelp)->type_name(program::kList);
  app.add_option("--bottleneck", s.bottleneck, "rows of bottleneck adapters")
      ->check(program::whole_number())
      ->capture_default_str();
  app.add_option("--bottleneck-kind", s.bottleneck_kind, "pfeiffer, houlsby or parallel")
      ->capture_default_str();
  program::add_lora_flags(app, text.lora);
  app.add_option("--alpha-pattern", text.alpha_pattern, "alphas of single modules, KEY=A,...");
  app.add_flag("--rslora", s.rslora, "scale is alpha / sqrt(rank)");
  app.add_flag("--dora", s.dora, program::kDoraHelp);
  app.add_option(
         "--init", text.init,
         "how A and B start: kaiming, gaussian, or pissa or olora, which take them out of the base")
      ->capture_default_str();
  app.add_option("--init-adapter", s.init_adapter, "start from this PEFT adapter");
  app.add_option("--virtual-tokens", s.virtual_tokens,
                 "of prompt and prefix, and vectors a layer of llama-adapter (20)")
      ->check(whole);
  app.add_option("--prompt-text", s.prompt_text, "what prompt starts as, instead of noise");
  app.add_option("--prefix-hidden", s.prefix_hidden, "prefix is made by an MLP of this hidden size")
      ->check(whole);
  app.add_option("--adapter-layers", s.adapter_layers,
                 "layers of llama-adapter, from the top (all but the first two)")
      ->check(whole);
}

void add_training_flags(CLI::App& app, FinetuneSettings& s) {
  const auto& whole = program::whole_number();
  const auto& real = program::real_number();
  app.add_option("--steps", s.steps, "optimizer steps, or")->check(whole);
  app.add_option("--epochs", s.epochs,
                 "passes over the data (3 up to 1,000 rows, 2 up to 5,000, else 1)")
      ->check(real);
  app.add_option("--batch", s.batch, "rows (or bins) per micro-batch")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--grad-accum", s.grad_accum, "micro-batches per step")->check(whole);
  app.add_option("--lr", s.lr, "peak learning rate (by model size: 0.0015 at 135M, 2e-4 at 7B)")
      ->check(real);
  app.add_option("--loraplus-ratio", s.loraplus_ratio,
                 "LoRA+: B's learning rate in units of --lr, e.g. 16 (1)")
      ->check(real);
  app.add_option("--schedule", s.schedule,
                 "constant, linear or cosine (linear; constant with --lr)");
  app.add_option("--warmup", s.warmup, "steps of linear warm-up (a tenth, at most 50; 0 with --lr)")
      ->check(whole);
  app.add_option("--weight-decay", s.weight_decay, "decoupled, as AdamW")->check(real);
  app.add_option("--clip", s.clip, "global gradient norm; 0 is off")->check(real);
  app.add_option("--label-smoothing", s.label_smoothing,
                 "share of each target's probability that goes to the whole vocabulary, in "
                 "training only")
      ->check(real);
  app.add_option("--seed", s.seed, "of everything random")->check(whole)->capture_default_str();
}

void add_evaluation_flags(CLI::App& app, FinetuneSettings& s) {
  const auto& whole = program::whole_number();
  app.add_option("--eval-data", s.eval_data, "rows to evaluate on, or");
  app.add_option("--eval-split", s.eval_split,
                 "share of the rows to evaluate on (0.1 of 48 or more, without --eval-data)")
      ->check(program::real_number());
  app.add_option("--eval-rows", s.eval_rows, "only the first N of --eval-data")->check(whole);
  app.add_option("--eval-every", s.eval_every, "evaluate every N steps (some ten times)")
      ->check(whole);
  app.add_option("--keep", s.keep, "best by evaluation, or last (best, if there are evaluations)");
  app.add_option("--patience", s.patience, "end after N evaluations without a new best")
      ->check(whole);
  app.add_option("--samples", s.samples, "evaluation rows continued in report.html (3)")
      ->check(whole);
  app.add_option("--sample-every", s.sample_every, "write samples every N steps")->check(whole);
}

void add_output_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  app.add_option("--out", s.out, "folder for the adapter: new or empty")->required();
  app.add_option("--save-every", s.save_every, "checkpoint every N steps")
      ->check(program::whole_number());
  app.add_flag("--resume", s.resume, "go on from --out's checkpoint");
  app.add_option("--base-name", s.base_name,
                 "ORG/NAME of the base on the Hugging Face hub, for those who open the adapter "
                 "(default: as its files say)");
  app.add_option("--sweep", text.sweep,
                 "a run for each combination, in --out/<trial>/, over one base in memory: "
                 "'rank=1,2,4;lr=1e-4,5e-4' (a + stands for the comma inside --targets)");
  app.add_flag("--tensorboard", s.tensorboard, "also write TensorBoard's event files into --out");
}

void add_machine_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  app.add_option("--device", s.device, "auto, cpu, cuda, cuda:0")->capture_default_str();
  app.add_option("--dtype", s.dtype, "auto, f32, bf16")->capture_default_str();
  app.add_option("--recompute", text.recompute, program::kRecomputeHelp)
      ->type_name(program::kList)
      ->capture_default_str();
  app.add_option("--memory", text.memory, program::kMemoryHelp);
  app.add_option("--memory-limit", text.memory_limit, "refuse to use more, e.g. 8GiB");
  app.add_flag("--no-verify-base", text.no_verify, "skip hashing the base before and after");
}

void add_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  in_group(app, "Model and data", [&] { add_data_flags(app, s, text); });
  in_group(app, "Adapter", [&] { add_adapter_flags(app, s, text); });
  in_group(app, "Training", [&] { add_training_flags(app, s); });
  in_group(app, "Evaluation", [&] { add_evaluation_flags(app, s); });
  in_group(app, "Output", [&] { add_output_flags(app, s, text); });
  in_group(app, "Machine", [&] { add_machine_flags(app, s, text); });
}

struct Console : FinetuneListener {
  void message(const std::string& text) override { program::message(text); }
  void rows(const std::string& text) override { program::write(text + "\n"); }
  void planned(const PlanRequest& request, const Plan& plan) override {
    program::message(plan_text(request, plan));
  }
  void stepped(const StepReport& r, std::int64_t total, std::int64_t live_bytes,
               double left) override {
    char text[200];
    std::snprintf(text, sizeof text,
                  "step %lld/%lld  loss %.4f  lr %.2e  |g| %.3f  %.0f tok/s  mem %.2f GiB  %s left",
                  static_cast<long long>(r.step), static_cast<long long>(total), r.loss, r.lr,
                  r.grad_norm, static_cast<double>(r.tokens) / r.seconds,
                  static_cast<double>(live_bytes) / (1 << 30), program::duration(left).c_str());
    program::progress(text, r.step == 1 || r.step == total);
  }
  void evaluated(std::int64_t step, const Evaluation& e) override {
    char text[160];
    std::snprintf(text, sizeof text, "eval at step %lld: loss %.4f  perplexity %.3f  (%lld tokens)",
                  static_cast<long long>(step), e.loss, e.perplexity,
                  static_cast<long long>(e.supervised_tokens));
    program::message(text);
  }
  void trained() override {
    program::say_on_signal("finishing without samples; Ctrl-C again ends the program at once");
  }
};

// Converts what the flags gave as text.
void settle(FinetuneSettings& settings, const Text& text) {
  if (text.targets) settings.targets = program::parse_list(*text.targets, "--targets");
  if (text.methods) settings.methods = program::parse_list(*text.methods, "--method");
  settings.layers = program::layers_of(text.lora);
  settings.rank_pattern = program::rank_pattern_of(text.lora);
  if (!text.alpha_pattern.empty())
    settings.alpha_pattern = parse_alpha_pattern(text.alpha_pattern, "--alpha-pattern");
  settings.init = parse_lora_init(text.init);
  settings.recompute = parse_recompute(text.recompute);
  settings.memory = program::parse_budget(text.memory);
  if (!text.memory_limit.empty()) settings.memory_limit = program::parse_bytes(text.memory_limit);
  settings.long_rows = program::long_rows(text.long_rows);
  settings.train_on = parse_train_on(text.train_on);
  if (!text.columns.empty()) settings.columns = Columns::parse(text.columns);
  settings.shuffle = !text.no_shuffle;
  settings.verify_base = !text.no_verify;
}

// Runs the trials of --sweep and prints their table.
int sweep_all(const CLI::App& app, int argc, char** argv, const FinetuneSettings& settings,
              const std::string& text) {
  auto read = [&](const std::vector<std::string>& more) {
    CLI::App again("", "finetune");
    FinetuneSettings s;
    Text own;
    add_flags(again, s, own);
    program::parse(again, argc, argv, more);
    settle(s, own);
    return s;
  };
  std::vector<SweepTrial> trials = program::read_sweep(app, argc, argv, text, read);
  Console console;
  const SweepResult result = sweep({settings.out, settings.resume}, std::move(trials), console,
                                   program::install_signal_handlers());
  program::write(sweep_text(result.record));
  program::write(concat("sweep: ", settings.out, "/sweep.html\n"));
  return result.exit_code;
}

int report(const FinetuneSettings& s, const FinetuneResult& r) {
  std::printf("trainable %lld of %lld parameters (%.3f %%)\n",
              static_cast<long long>(r.trainable_parameters),
              static_cast<long long>(r.base_parameters + r.trainable_parameters),
              100.0 * static_cast<double>(r.trainable_parameters) /
                  static_cast<double>(r.base_parameters + r.trainable_parameters));
  std::printf("%lld steps, loss %.4f -> %.4f, %.0f tokens/s\n", static_cast<long long>(r.steps),
              r.first_loss, r.last_loss, r.tokens_per_second());
  if (r.eval_before && r.eval_after)
    std::printf("eval loss %.4f -> %.4f\n", r.eval_before->loss, r.eval_after->loss);
  if (r.kept_step > 0 && r.kept_step != r.steps && r.best)
    std::printf("kept: step %lld, eval loss %.4f\n", static_cast<long long>(r.kept_step),
                r.best->loss);
  std::printf("%s", memory_table(r.memory).c_str());
  std::printf("proved: gradients and optimizer state exist for %s only%s\n", r.trained.c_str(),
              !s.verify_base         ? ""
              : changes_base(s.init) ? "; what is left of the base unchanged in training (SHA-256)"
                                     : "; base weights unchanged (SHA-256)");
  if (r.signal) {
    std::printf("stopped by signal %d; go on with: finetune --resume --out %s\n", r.signal,
                shell_word(s.out).c_str());
    return 128 + r.signal;
  }
  std::printf("adapter: %s/adapter_model.safetensors\nreport: %s/report.html\n", s.out.c_str(),
              s.out.c_str());
  std::printf("try it: generate --model %s --adapter %s%s --prompt '...'\n",
              shell_word(s.model).c_str(), shell_word(s.out).c_str(),
              use_flags(read_adapter_use(s.out).value_or(AdapterUse{})).c_str());
  return 0;
}

// The command line, and where it says no more than --resume and --out, its run's own settings.
class CommandLine {
 public:
  CommandLine(int argc, char** argv) : args_(argv, argv + argc) {
    const std::string out = value_of("--out");
    if (has("--resume") && !has("--config") && !has("--model") && !has("--data") &&
        exists(out + "/run.toml")) {
      config_ = "--config=" + out + "/run.toml";
      args_.push_back(config_.data());
    }
    args_.push_back(nullptr);
  }
  bool has(const std::string& flag) const {
    return std::any_of(args_.begin(), args_.end(), [&](const char* arg) {
      return arg && (arg == flag || std::string(arg).starts_with(flag + "="));
    });
  }
  int argc() const { return static_cast<int>(args_.size()) - 1; }
  char** argv() { return args_.data(); }

 private:
  std::string value_of(const std::string& flag) const {
    for (std::size_t i = 0; i < args_.size(); ++i) {
      const std::string arg = args_[i];
      if (arg == flag && i + 1 < args_.size()) return args_[i + 1];
      if (arg.starts_with(flag + "=")) return arg.substr(flag.size() + 1);
    }
    return "";
  }
  std::vector<char*> args_;
  std::string config_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Fine-tune a model with LoRA. Results go to stdout, progress to stderr.\n\n"
      "  finetune --model model.gguf --data rows.jsonl --out runs/mine\n"
      "  finetune --model model.gguf --data support.csv --columns user=question,assistant=answer "
      "--out runs/support\n"
      "  finetune --config runs/mine/run.toml --lr 5e-4 --out runs/other\n"
      "  finetune --model model.gguf --data rows.jsonl --sweep 'rank=4,16;lr=5e-4,1e-3' --out "
      "runs/sweep\n",
      "finetune");
  FinetuneSettings settings;
  Text text;
  add_flags(app, settings, text);
  CommandLine line(argc, argv);
  return program::run(app, line.argc(), line.argv(), [&] {
    // One of the two on the command line wins over the other in a settings file.
    if (line.has("--steps") && !line.has("--epochs")) settings.epochs.reset();
    if (line.has("--epochs") && !line.has("--steps")) settings.steps.reset();
    settle(settings, text);
    if (text.sweep) return sweep_all(app, line.argc(), line.argv(), settings, *text.sweep);
    Console console;
    program::say_on_signal(
        "stopping after this step, which is saved; Ctrl-C again ends the program at once");
    return report(settings, finetune(settings, console, program::install_signal_handlers()));
  });
}
