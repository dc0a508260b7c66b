// plan: parameter counts and memory by purpose, before any run.
#include <cstdio>

#include "cuda/open_device.h"
#include "io/json.h"
#include "lora_flags.h"
#include "modelfile/model_file.h"
#include "nn/streamed_base.h"
#include "processes.h"
#include "program.h"
#include "run/defaults.h"
#include "run/plan.h"
#include "settings_file.h"

namespace {

using namespace lk;

// Prints "100x500" as 50,000 numbers in W against r (100 + 500) in A and B: the textbook example.
int matrix(const std::string& text, std::int64_t rank) {
  std::size_t x = text.find('x');
  auto number = [&](std::string part) {
    if (!program::whole_number()(part).empty() || part.size() > 9 || std::stoll(part) < 1)
      throw UsageError(concat("--matrix ", text, ": expected IN x OUT, like 100x500"));
    return static_cast<std::int64_t>(std::stoll(part));
  };
  if (x == std::string::npos) throw UsageError(concat("--matrix ", text, ": like 100x500"));
  const std::int64_t in = number(text.substr(0, x)), out = number(text.substr(x + 1));
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

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Memory and parameters of a LoRA run, by purpose, before it starts.\n\n"
      "  plan --model model.gguf --batch 4 --seq-len 2048\n"
      "  plan --shape llama2-7b --rank 8 --memory 24GiB --device cuda\n"
      "  plan --matrix 100x500 --rank 5\n",
      "plan");
  PlanRequest request;
  std::string model, shape, matrix_text, dtype = "bf16", device = "cpu";
  std::string recompute = "none", memory, base_precision = "auto", keep_dense, fp8 = "auto",
              offload_base = "0", shard_base = "0";
  std::optional<std::string> targets, methods;
  std::string bottleneck_kind = "pfeiffer";
  std::int64_t virtual_tokens = 20, prefix_hidden = 0, adapter_layers = 0, bottleneck = 64;
  program::LoraFlags lora;
  std::optional<double> alpha;
  double dropout = 0;
  std::optional<std::int64_t> rank, seq_len;
  bool json = false;
  const auto& whole = program::whole_number();
  auto* source = app.add_option_group("what", "one of");
  source->add_option("--model", model, ".gguf file or Hugging Face folder");
  source->add_option("--shape", shape, "smollm2-135m, llama3.2-1b, llama2-7b, ...");
  source->add_option("--matrix", matrix_text, "one matrix, like 100x500");
  source->require_option(1);
  app.add_option("--rank", rank, "rank of A and B (16)")->check(whole);
  app.add_option("--alpha", alpha, "does not change memory")->check(program::real_number());
  app.add_option("--dropout", dropout,
                 "on the adapter's input: a GPU keeps the masks, a bit an element")
      ->check(program::real_number());
  app.add_option("--method", methods, "what is trained, as finetune's")->default_str("lora");
  app.add_option("--virtual-tokens", virtual_tokens, "of prompt, prefix and llama-adapter")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--prefix-hidden", prefix_hidden, "of prefix's MLP")->check(whole);
  app.add_option("--adapter-layers", adapter_layers, "of llama-adapter")->check(whole);
  app.add_option("--bottleneck", bottleneck, "rows of bottleneck adapters")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--bottleneck-kind", bottleneck_kind, "pfeiffer, houlsby or parallel")
      ->capture_default_str();
  app.add_option("--targets", targets, program::kTargetsHelp)->type_name(program::kList);
  program::add_lora_flags(app, lora);
  app.add_flag("--dora", request.methods.lora.shape.dora, program::kDoraHelp);
  app.add_option("--batch", request.batch, "rows per micro-batch")->check(whole);
  app.add_option("--grad-accum", request.grad_accum, "micro-batches per step")->check(whole);
  app.add_option("--seq-len", seq_len, "longest row (1024, or what the model has if that is less)")
      ->check(whole);
  app.add_option("--dtype", dtype, "f32 or bf16")->capture_default_str();
  app.add_option("--device", device, "cpu or cuda")->capture_default_str();
  app.add_option("--base-precision", base_precision, program::kBasePrecisionHelp)
      ->capture_default_str();
  app.add_option("--keep-dense", keep_dense, program::kKeepDenseHelp)->type_name(program::kList);
  app.add_option("--fp8-products", fp8, program::kFp8ProductsHelp)->capture_default_str();
  app.add_option("--recompute", recompute, program::kRecomputeHelp)
      ->type_name(program::kList)
      ->capture_default_str();
  app.add_option("--offload-base", offload_base, program::kOffloadBaseHelp)->capture_default_str();
  app.add_option("--shard-base", shard_base, program::kShardBaseHelp)->capture_default_str();
  app.add_option("--memory", memory, program::kMemoryHelp);
  app.add_option("--processes", request.processes, "that share each step: one's part")
      ->check(whole);
  app.add_flag("--fast-reduce", request.fast_reduce, program::kFastReduceHelp);
  app.add_flag("--json", json, "as JSON");
  return program::run(app, argc, argv, [&] {
    if (!matrix_text.empty()) return matrix(matrix_text, rank.value_or(8));
    if (request.batch < 1 || request.batch > kMostBatch)
      throw UsageError(concat("--batch must be in 1 .. ", kMostBatch));
    if (request.grad_accum < 1 || request.grad_accum > kMostGradAccum)
      throw UsageError(concat("--grad-accum must be in 1 .. ", kMostGradAccum));
    require(request.processes >= 0 && request.processes <= program::kMostProcesses,
            "--processes must be in 1 .. ", program::kMostProcesses);
    require(!request.fast_reduce || (request.processes > 0 && request.grad_accum > 1),
            "--fast-reduce: is for the micro-batches of a step (--grad-accum) that processes share "
            "(--processes)");
    if (seq_len && (*seq_len < 2 || *seq_len > 1 << 24))
      throw UsageError("--seq-len must be in 2 .. 16777216");
    if (dtype != "f32" && dtype != "bf16") throw UsageError("--dtype: f32 or bf16");
    if (device != "cpu" && !device.starts_with("cuda")) throw UsageError("--device: cpu or cuda");
    BaseStorage storage{parse_base_precision(base_precision)};
    if (!keep_dense.empty()) storage.keep_dense = program::parse_list(keep_dense, "--keep-dense");
    std::optional<ModelFile> file;
    if (shape.empty()) file.emplace(model);
    request.model = file ? file->config() : named_shape(shape);
    storage.fp8_products = uses_fp8_products(fp8, request.model, *open_plan_device(device),
                                             dtype == "f32" ? DType::F32 : DType::BF16);
    request.formats = file ? held_formats(*file, storage) : held_formats(request.model, storage);
    MethodConfig& method = request.methods;
    if (methods) method.names = program::parse_list(*methods, "--method");
    check_methods(method.names);
    require(virtual_tokens >= 1 && bottleneck >= 1,
            "--virtual-tokens and --bottleneck must be at least 1");
    method.prompt.virtual_tokens = method.prefix.virtual_tokens = virtual_tokens;
    method.llama_adapter.length = virtual_tokens;
    method.prefix.hidden_size = prefix_hidden;
    method.llama_adapter.layers = adapter_layers;
    method.bottleneck = BottleneckConfig::of_kind(bottleneck_kind, bottleneck);
    const std::int64_t room = request.model.max_position - extra_positions(method);
    require(room >= 2, "--virtual-tokens ", virtual_tokens, ": the model has ",
            request.model.max_position, " positions");
    request.seq_len = seq_len ? *seq_len : std::min(kMostTokens, room);
    request.methods.lora.shape.rank = rank ? *rank : default_rank(request.model);
    request.methods.lora.targets = {"all-linear"};
    if (targets)
      method.lora.targets = method.ia3.targets = method.bitfit.targets =
          program::parse_list(*targets, "--targets");
    request.methods.lora.shape.alpha =
        alpha.value_or(static_cast<double>(request.methods.lora.shape.rank));
    require(dropout >= 0 && static_cast<float>(dropout) < 1, "--dropout ", dropout,
            ": at least 0 and less than 1");
    method.lora.shape.dropout = method.bottleneck.dropout = static_cast<float>(dropout);
    request.methods.lora.layers = program::layers_of(lora);
    apply_patterns(request.methods.lora, request.model, program::rank_pattern_of(lora), {});
    request.compute_dtype = dtype == "f32" ? DType::F32 : DType::BF16;
    request.device = device;
    request.recompute = parse_recompute(recompute);
    request.streamed = parse_streamed_layers(offload_base, shard_base);
    const std::int64_t budget = program::parse_budget(memory);
    if (budget > 0 && recompute != "none")
      throw UsageError("--memory chooses --recompute: give one of the two");
    Plan plan = budget > 0 ? plan_within(request, budget) : plan_training(request);
    if (budget > 0) check_fits(request, plan, budget, "--memory");
    program::write(json ? json_text(plan_to_json(request, plan), 2) + "\n"
                        : plan_text(request, plan));
    return 0;
  });
}
