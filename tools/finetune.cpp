// finetune: LoRA training of a GGUF or Hugging Face model on a text file.
#include <algorithm>
#include <cstdio>

#include "finetune_flags.h"
#include "io/json.h"
#include "io/paths.h"
#include "processes.h"
#include "program.h"
#include "run/adapter_use.h"
#include "run/bytes_per_parameter.h"
#include "run/finetune.h"
#include "run/methods.h"
#include "run/run_settings.h"
#include "sweep_flags.h"

namespace {

using namespace lk;

struct Console : FinetuneListener {
  void message(const std::string& text) override { program::message(text); }
  void rows(const std::string& text) override { program::write(text + "\n"); }
  void planned(const PlanRequest& request, const Plan& plan) override {
    program::message(plan_text(request, plan));
  }
  void stepped(const StepReport& r, const StepProgress& p) override {
    char text[200];
    std::snprintf(
        text, sizeof text,
        "step %lld/%lld  loss %.4f  lr %.2e  |g| %.3f  %.0f tok/s  peak %.2f GiB  %s left",
        static_cast<long long>(r.step), static_cast<long long>(p.total_steps), r.loss, r.lr,
        r.grad_norm, p.tokens_per_second, static_cast<double>(p.peak_bytes) / (1 << 30),
        program::duration(p.seconds_left).c_str());
    program::progress(text, r.step == 1 || r.step == p.total_steps);
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

constexpr const char* kSweepWorker = "LORIKEET_SWEEP_WORKER";

// Runs the trials of --sweep, or is one of the processes that do, and prints their table.
int sweep_all(const CLI::App& app, int argc, char** argv, const FinetuneSettings& settings,
              const program::FinetuneText& text) {
  auto read = [&](const std::vector<std::string>& more) {
    CLI::App again("", "finetune");
    FinetuneSettings s;
    program::FinetuneText own;
    program::add_finetune_flags(again, s, own);
    program::parse(again, argc, argv, more);
    program::settle(s, own);
    return s;
  };
  std::vector<SweepTrial> trials = program::read_sweep(app, argc, argv, *text.sweep, read);
  SweepSettings sweep_settings{settings.out, settings.resume};
  if (program::is_started_as(kSweepWorker)) {
    serve_sweep(sweep_settings, std::move(trials), program::install_signal_handlers());
    return 0;
  }
  const program::SharedCommand shared(text.processes, settings.device);
  require(!shared.started_by_another(), "--sweep: starts its own processes; start it once");
  if (shared.shared()) {
    const int useful = std::min(shared.count(), static_cast<int>(trials.size()));
    sweep_settings.workers = program::own_command_times(useful, settings.device, argc, argv);
    for (ChildCommand& worker : sweep_settings.workers)
      worker.environment.insert(program::role_environment(kSweepWorker));
  }
  Console console;
  const SweepResult result =
      sweep(sweep_settings, std::move(trials), console, program::install_signal_handlers());
  program::write(sweep_text(result.record));
  program::write(concat("sweep: ", settings.out, "/sweep.html\n"));
  return result.exit_code;
}

// Whether the adapter in `folder` is one of PEFT's that calls its base `name`.
bool names_base(const std::string& folder, const std::string& name) {
  const std::string config = folder + "/adapter_config.json";
  return exists(config) && read_json(config).value("base_model_name_or_path", "") == name;
}

std::string fixed(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", x);
  return text;
}

int report(const FinetuneSettings& s, const FinetuneResult& r) {
  std::printf("trainable %lld of %lld parameters (%.3f %%)\n",
              static_cast<long long>(r.trainable_parameters),
              static_cast<long long>(r.base_parameters + r.trainable_parameters),
              100.0 * static_cast<double>(r.trainable_parameters) /
                  static_cast<double>(r.base_parameters + r.trainable_parameters));
  std::printf("%lld steps, loss %.4f -> %.4f, %.0f tokens/s\n", static_cast<long long>(r.steps),
              r.first_loss, r.last_loss, r.tokens_per_second());
  const bool earlier = r.kept_step > 0 && r.kept_step != r.steps && r.best;
  if (r.eval_before && r.eval_after)
    std::printf("eval loss %.4f -> %.4f\n", r.eval_before->loss,
                earlier ? r.best->loss : r.eval_after->loss);
  if (earlier)
    std::printf(
        "kept: step %lld of %lld, whose evaluation loss that is%s\n",
        static_cast<long long>(r.kept_step), static_cast<long long>(r.steps),
        r.eval_after ? concat("; the last step's is ", fixed(r.eval_after->loss)).c_str() : "");
  std::printf("%s", memory_table(r.memory).c_str());
  const bool full = replaces_base(MethodConfig{s.methods});
  std::printf("%s\n", bytes_per_parameter(MethodConfig{s.methods}.text(), r.memory,
                                          r.base_parameters, r.trainable_parameters)
                          .c_str());
  std::printf("proved: gradients and optimizer state exist for %s only%s\n", r.trained.c_str(),
              full                   ? "; nothing of the base is frozen"
              : !s.verify_base       ? ""
              : changes_base(s.init) ? "; what is left of the base unchanged in training (SHA-256)"
                                     : "; base weights unchanged (SHA-256)");
  if (r.signal) {
    std::printf("stopped by signal %d; go on with: %s --resume --out %s\n", r.signal,
                program::command("finetune").c_str(), shell_word(s.out).c_str());
    return 128 + r.signal;
  }
  std::printf("%s: %s/%s\nreport: %s/report.html\n", full ? "model" : "adapter", s.out.c_str(),
              full ? "model.safetensors" : "adapter_model.safetensors", s.out.c_str());
  std::printf("try it: %s --model %s%s --prompt '...'\n", program::command("generate").c_str(),
              full ? shell_word(s.out).c_str()
                   : concat(shell_word(s.model), " --adapter ", shell_word(s.out)).c_str(),
              use_flags(read_adapter_use(s.out).value_or(AdapterUse{})).c_str());
  if (s.model.ends_with(".gguf") && names_base(s.out, s.model))
    std::printf(
        "for PEFT: %s --model %s --out BASE makes a folder of the base, and a run with "
        "--base-name BASE names it in its adapter\n",
        program::command("merge").c_str(), shell_word(s.model).c_str());
  return 0;
}

// The command line, and where it resumes a run without saying of what, that run's own settings.
class CommandLine {
 public:
  CommandLine(int argc, char** argv) : args_(argv, argv + argc) {
    const std::string out = value_of("--out");
    if (has("--resume") && !has("--config") && !(has("--model") && has("--data"))) {
      if (exists(out + "/run.toml"))
        config_ = "--config=" + out + "/run.toml", args_.push_back(config_.data());
      else
        no_run_ = out;
    }
    args_.push_back(nullptr);
  }
  // The folder that holds no run, where the command line says nothing else of what to go on with.
  const std::string& no_run() const { return no_run_; }
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
  std::string config_, no_run_;
};

// Runs the training in this process, or in several of which this may be one.
int train(FinetuneSettings& settings, const program::FinetuneText& text, CommandLine& line) {
  const program::SharedCommand shared(text.processes, settings.device);
  if (shared.shared()) settings.processes = shared.count();
  if (shared.starts_others()) {
    validate_settings(settings);  // once, before all do
    return shared.start(line.argc(), line.argv());
  }
  const std::atomic<int>& stop = program::install_signal_handlers();
  Console console;
  program::say_on_signal(
      "stopping after this step, which is saved; Ctrl-C again ends the program at once");
  if (!shared.shared()) return report(settings, finetune(settings, console, stop));
  World world = shared.open_world();
  const FinetuneResult result = finetune(settings, world, console, stop);
  if (world.leads()) return report(settings, result);
  return result.signal ? 128 + result.signal : 0;
}

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
  program::FinetuneText text;
  program::add_finetune_flags(app, settings, text);
  CommandLine line(argc, argv);
  if (!line.no_run().empty())
    for (const char* flag : {"--model", "--data"}) app.get_option(flag)->required(false);
  return program::run(app, line.argc(), line.argv(), [&] {
    require(line.no_run().empty(), "--resume: ", line.no_run(),
            " holds no run to go on with (run.toml); a new one takes --model and --data");
    // One of the two on the command line wins over the other in a settings file.
    if (line.has("--steps") && !line.has("--epochs")) settings.epochs.reset();
    if (line.has("--epochs") && !line.has("--steps")) settings.steps.reset();
    program::settle(settings, text);
    if (text.sweep) return sweep_all(app, line.argc(), line.argv(), settings, text);
    return train(settings, text, line);
  });
}
