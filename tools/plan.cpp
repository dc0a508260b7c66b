// plan: parameter counts and memory by purpose, before any run.
#include <algorithm>
#include <cstdio>

#include "cuda/open_device.h"
#include "finetune_flags.h"
#include "io/json.h"
#include "modelfile/model_file.h"
#include "modelfile/named_shapes.h"
#include "processes.h"
#include "program.h"
#include "run/choices.h"
#include "run/inference.h"
#include "run/plan.h"
#include "run/run_inputs.h"
#include "run/run_settings.h"

namespace {

using namespace lk;

// Every other flag is a run's.
void check_alone(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    require(option->count() == 0 || name == "--matrix" || name == "--rank" || name == "--threads" ||
                name == "--config",
            name, ": has no effect beside --matrix, which takes --rank alone");
  }
}

// Prints "100x500" as 50,000 numbers in W against r (100 + 500) in A and B: the textbook example.
int matrix(const std::string& text, const std::optional<std::int64_t>& given) {
  std::size_t x = text.find('x');
  auto number = [&](std::string part) {
    if (!program::whole_number()(part).empty() || part.size() > 9 || std::stoll(part) < 1)
      throw UsageError(concat("--matrix ", text, ": expected IN x OUT, like 100x500"));
    return static_cast<std::int64_t>(std::stoll(part));
  };
  if (x == std::string::npos) throw UsageError(concat("--matrix ", text, ": like 100x500"));
  const std::int64_t in = number(text.substr(0, x)), out = number(text.substr(x + 1));
  const std::int64_t rank = given.value_or(std::min<std::int64_t>({16, in, out}));
  if (rank < 1 || rank > std::min(in, out))
    throw UsageError(concat("--rank ", rank, ": between 1 and ", std::min(in, out), " here"));
  auto grouped = [](std::int64_t n) {
    std::string s = std::to_string(n);
    for (std::ptrdiff_t i = std::ssize(s) - 3; i > 0; i -= 3)
      s.insert(static_cast<std::size_t>(i), ",");
    return s;
  };
  const std::int64_t full = in * out, lora = rank * (in + out);
  std::printf("W %s: %s parameters\nA (%lldx%lld) and B (%lldx%lld): %s parameters (%.2f %%)\n",
              text.c_str(), grouped(full).c_str(), static_cast<long long>(in),
              static_cast<long long>(rank), static_cast<long long>(rank),
              static_cast<long long>(out), grouped(lora).c_str(),
              100.0 * static_cast<double>(lora) / static_cast<double>(full));
  return 0;
}

struct Console : FinetuneListener {
  void message(const std::string& text) override { program::message(text); }
  void rows(const std::string& text) override { program::message(text); }
};

// The plan that a run on --data makes first.
PlanRequest request_on_data(FinetuneSettings& s, Backend& backend, DType dtype) {
  if (s.out.empty()) s.out = "nowhere";  // which a run needs, and a plan writes nothing to
  validate_settings(s);
  Console console;
  return read_inputs(s, backend, dtype, console, nullptr).plan_request(s, backend, dtype);
}

// That of a run whose micro-batches are --batch rows of --seq-len tokens.
PlanRequest request_of(FinetuneSettings& s, Backend& backend, DType dtype, const ModelFile* file,
                       const ModelConfig& model) {
  PlanRequest r;
  r.model = model;
  r.compute_dtype = dtype;
  check_layers(s, model);
  r.methods = choose_methods(s, model);
  r.formats = choose_precision(s, r.methods, model, file, backend, dtype).formats;
  // A shape stands for the sizes of matrices; angles reach as far as rows do.
  if (!file && s.seq_len)
    r.model.max_position = std::max(model.max_position, *s.seq_len + extra_positions(r.methods));
  choose_seq_len(s, r.methods, r.model);
  r.batch = s.batch, r.grad_accum = s.grad_accum, r.seq_len = *s.seq_len;
  r.recompute = s.recompute;
  r.streamed = s.streamed;
  r.fast_reduce = s.fast_reduce;
  return r;
}

// What would be planned for --data, and has no effect without it.
void check_has_data(const FinetuneSettings& s) {
  if (!s.data.empty()) return;
  const std::pair<const char*, bool> given[] = {{"--eval-data", !s.eval_data.empty()},
                                                {"--sample-every", s.sample_every != 0},
                                                {"--init-adapter", !s.init_adapter.empty()}};
  for (const auto& [flag, is_given] : given)
    require(!is_given, flag, ": has no effect on a plan without --data");
}

// The plan of a run with these settings.
PlanRequest request_of(FinetuneSettings& s, const std::string& shape) {
  validate_step(s);
  // A shape is of a run that is not to be here: on a GPU, as most are.
  if (s.device == "auto") s.device = n_gpus() > 0 || !shape.empty() ? "cuda" : "cpu";
  const auto backend = open_plan_device(s.device);
  const DType dtype = parse_compute_dtype(s.dtype, *backend);
  require_possible(s.recompute, *backend);
  require_streamable(s.streamed, *backend);
  PlanRequest r;
  if (!s.data.empty()) {
    r = request_on_data(s, *backend, dtype);
  } else if (!shape.empty()) {
    r = request_of(s, *backend, dtype, nullptr, named_shape(shape));
  } else {
    const ModelFile file(s.model);
    r = request_of(s, *backend, dtype, &file, file.config());
  }
  r.device = s.device;
  r.processes = static_cast<int>(s.processes.value_or(0));
  return r;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Memory and parameters of a finetune run, by purpose, before it starts. Takes the run's "
      "flags, and has its defaults: with --data it is the plan of the micro-batches that the run "
      "has, and without it that of --batch rows of --seq-len tokens. --device auto is a GPU if "
      "this machine has one or for a --shape, and else the CPU; --device cuda needs none.\n\n"
      "  plan --model model.gguf --batch 4 --seq-len 2048\n"
      "  plan --model model.gguf --data rows.jsonl --sample-every 20\n"
      "  plan --config runs/mine/run.toml --batch 16\n"
      "  plan --shape llama2-7b --memory 24GiB\n"
      "  plan --matrix 100x500 --rank 5\n",
      "plan");
  FinetuneSettings settings;
  program::FinetuneText text;
  std::string shape, matrix_text;
  bool json = false;
  app.add_option(
      "--shape", shape,
      "smollm2-135m, gemma3-1b, qwen3-8b, ..., in place of --model; another word lists all");
  app.add_option("--matrix", matrix_text, "one matrix, like 100x500, and --rank alone");
  app.add_flag("--json", json, "as JSON");
  program::add_finetune_flags(app, settings, text);
  for (const char* flag : {"--model", "--data", "--out"}) app.get_option(flag)->required(false);
  app.get_option("--device")->description("auto, cpu, or cuda or cuda:0, which need not be there");
  return program::run(app, argc, argv, [&] {
    require(!settings.model.empty() + !shape.empty() + !matrix_text.empty() == 1,
            "--model, --shape, --matrix: give one of the three");
    if (!matrix_text.empty()) {
      check_alone(app);
      return matrix(matrix_text, settings.rank);
    }
    require(shape.empty() || settings.data.empty(), "--data: goes with --model, which reads it");
    require(!text.sweep, "--sweep: a plan is of one run: give a trial's flags");
    program::settle(settings, text);
    if (text.processes.count)
      settings.processes = program::process_number(*text.processes.count, settings.device);
    check_has_data(settings);
    const bool found_none = settings.device == "auto" && shape.empty() && n_gpus() == 0;
    PlanRequest request = request_of(settings, shape);
    const std::int64_t budget = std::max(settings.memory, settings.memory_limit);
    const Plan plan = settings.memory > 0 ? plan_within(request, budget) : plan_training(request);
    if (budget > 0)
      check_fits(request, plan, budget,
                 settings.memory > 0 ? "--memory allows" : "--memory-limit allows");
    if (found_none)
      program::message("planned for the CPU, as no GPU is here: --device cuda plans for one");
    program::write(json ? json_text(plan_to_json(request, plan), 2) + "\n"
                        : plan_text(request, plan));
    return 0;
  });
}
