// plan: parameter counts and memory by purpose, before any run.
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
#include "run/run_settings.h"

namespace {

using namespace lk;

// Every other flag is a run's.
void check_alone(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    require(option->count() == 0 || name == "--rank" || name == "--threads" || name == "--config",
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

// The plan that a run of these settings makes first.
PlanRequest request_of(FinetuneSettings& s, const ModelFile* file, const ModelConfig& model) {
  const auto backend = open_plan_device(s.device);
  PlanRequest r;
  r.model = model;
  r.compute_dtype = parse_compute_dtype(s.dtype, *backend);
  require_possible(s.recompute, *backend);
  require_streamable(s.streamed, *backend);
  check_layers(s, model);
  r.methods = choose_methods(s, model);
  r.formats = choose_precision(s, r.methods, model, file, *backend, r.compute_dtype).formats;
  // A shape stands for the sizes of matrices; angles reach as far as rows do.
  if (!file && s.seq_len)
    r.model.max_position = std::max(model.max_position, *s.seq_len + extra_positions(r.methods));
  choose_seq_len(s, r.methods, r.model);
  r.device = s.device;
  r.batch = s.batch, r.grad_accum = s.grad_accum, r.seq_len = *s.seq_len;
  r.recompute = s.recompute;
  r.streamed = s.streamed;
  r.processes = static_cast<int>(s.processes.value_or(0));
  r.fast_reduce = s.fast_reduce;
  return r;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Memory and parameters of a LoRA run, by purpose, before it starts.\n\n"
      "  plan --model model.gguf --batch 4 --seq-len 2048\n"
      "  plan --shape llama2-7b --rank 8 --memory 24GiB --device cuda\n"
      "  plan --matrix 100x500 --rank 5\n",
      "plan");
  FinetuneSettings settings;
  settings.batch = 1, settings.device = "cpu", settings.dtype = "bf16";
  program::FinetuneText text;
  std::string shape, matrix_text;
  bool json = false;
  const auto& whole = program::whole_number();
  auto* source = app.add_option_group("what", "one of");
  source->add_option("--model", settings.model, program::kModelHelp)
      ->transform(program::model_name());
  source->add_option("--shape", shape,
                     "smollm2-135m, gemma3-1b, qwen3-8b, ...; another word lists all");
  source->add_option("--matrix", matrix_text, "one matrix, like 100x500");
  source->require_option(1);
  program::add_method_flags(app, settings, text);
  app.add_option("--batch", settings.batch, "rows per micro-batch")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--grad-accum", settings.grad_accum, "micro-batches per step")->check(whole);
  app.add_option("--seq-len", settings.seq_len,
                 "longest row (1024, or what the model has if that is less)")
      ->check(whole);
  app.add_option("--dtype", settings.dtype, "auto, f32, bf16")->capture_default_str();
  app.add_option("--device", settings.device, "cpu, cuda or cuda:0, which need not be there")
      ->capture_default_str();
  app.add_option("--processes", text.processes.count, "that share each step: one's part");
  program::add_memory_flags(app, settings, text);
  app.add_flag("--json", json, "as JSON");
  return program::run(app, argc, argv, [&] {
    if (!matrix_text.empty()) {
      check_alone(app);
      return matrix(matrix_text, settings.rank);
    }
    require(settings.device == "cpu" || settings.device.starts_with("cuda"),
            "--device: cpu or cuda");
    program::settle(settings, text);
    if (text.processes.count)
      settings.processes = program::process_number(*text.processes.count, settings.device);
    validate_step(settings);
    std::optional<ModelFile> file;
    if (shape.empty()) file.emplace(settings.model);
    PlanRequest request =
        request_of(settings, file ? &*file : nullptr, file ? file->config() : named_shape(shape));
    const std::int64_t budget = settings.memory;
    const Plan plan = budget > 0 ? plan_within(request, budget) : plan_training(request);
    if (budget > 0) check_fits(request, plan, budget, "--memory allows");
    program::write(json ? json_text(plan_to_json(request, plan), 2) + "\n"
                        : plan_text(request, plan));
    return 0;
  });
}
