#include "finetune_flags.h"

#include "nn/streamed_base.h"
#include "program.h"
#include "settings_file.h"

namespace lk::program {
namespace {

using Text = FinetuneText;

// Flags added by `add` stand under this heading of --help.
void in_group(CLI::App& app, const char* heading, const std::function<void()>& add) {
  const std::size_t before = app.get_options().size();
  add();
  const std::vector<CLI::Option*> all = app.get_options([](const CLI::Option*) { return true; });
  for (std::size_t i = before; i < all.size(); ++i) all[i]->group(heading);
}

void add_data_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  const auto& whole = whole_number();
  app.add_option("--model", s.model, kModelHelp)->required()->transform(model_name());
  app.add_option("--data", s.data, kDataHelp)->required();
  app.add_option("--format", s.format, kFormatHelp);
  app.add_option("--columns", text.columns, kColumnsHelp)->type_name(kList);
  app.add_option("--system", s.system, kSystemHelp);
  app.add_option("--template", s.chat_template, "chat template by name, if the model's is unknown");
  app.add_option("--train-on", text.train_on, kTrainOnHelp)->capture_default_str();
  app.add_option("--seq-len", s.seq_len,
                 "longest row (1024, or what the model has if that is less)")
      ->check(whole);
  add_long_row_flags(app, text.long_rows);
  app.add_flag("--skip-bad-rows", s.skip_bad_rows, "leave out and count rows that can't be read");
  app.add_flag("--packing", s.packing, "a micro-batch is --batch bins of --seq-len tokens of rows");
  app.add_flag("--no-shuffle", text.no_shuffle, "rows in file order, wrapping round");
  app.add_option("--show-rows", s.show_rows, "print the first N rows, trained tokens marked")
      ->check(whole);
}

void add_adapter_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  add_method_flags(app, s, text);
  app.add_option("--alpha-pattern", text.alpha_pattern, "alphas of single modules, KEY=A,...");
  app.add_flag("--rslora", s.rslora, "scale is alpha / sqrt(rank)");
  app.add_option(
         "--init", text.init,
         "how A and B start: kaiming, gaussian, or pissa or olora, which take them out of the base")
      ->capture_default_str();
  app.add_option("--init-adapter", s.init_adapter, "start from this PEFT adapter");
  app.add_option("--prompt-text", s.prompt_text, "what prompt starts as, instead of noise");
}

void add_training_flags(CLI::App& app, FinetuneSettings& s) {
  const auto& whole = whole_number();
  const auto& real = real_number();
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
  app.add_option("--seed", s.seed, "of everything random")
      ->check(seed_number())
      ->capture_default_str();
}

void add_evaluation_flags(CLI::App& app, FinetuneSettings& s) {
  const auto& whole = whole_number();
  app.add_option("--eval-data", s.eval_data, "rows to evaluate on, or");
  app.add_option("--eval-split", s.eval_split,
                 "share of the rows to evaluate on (0.1 of 48 or more, without --eval-data)")
      ->check(real_number());
  app.add_option("--eval-rows", s.eval_rows, "at most N rows: the first of --eval-data")
      ->check(whole);
  app.add_option("--eval-every", s.eval_every,
                 "evaluate every N steps (four to ten times, for an eighth of the time)")
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
  app.add_option("--save-every", s.save_every,
                 "checkpoint every N steps (ten times, 50 to 500 steps apart); 0: only at the end")
      ->check(whole_number());
  app.add_flag("--resume", s.resume, "go on from --out's checkpoint");
  app.add_option(
      "--base-name", s.base_name,
      "what the adapter calls its base, for those who open it: ORG/NAME on the Hugging Face "
      "hub, or a Hugging Face folder of it (default: as its files say, else --model)");
  app.add_option("--sweep", text.sweep,
                 "a run for each combination, in --out/<trial>/, over one base in memory: "
                 "'rank=1,2,4;lr=1e-4,5e-4' (a + stands for the comma inside --targets)");
  app.add_flag("--tensorboard", s.tensorboard, "also write TensorBoard's event files into --out");
}

void add_machine_flags(CLI::App& app, FinetuneSettings& s, Text& text) {
  app.add_option("--device", s.device, "auto, cpu, cuda, cuda:0")->capture_default_str();
  text.processes.add(
      app,
      "N or all: one a GPU, or that many on the CPU, share the micro-batches of each "
      "step, with the same result for any N; with --sweep, its trials");
  app.add_option("--dtype", s.dtype, "auto, f32, bf16")->capture_default_str();
  add_memory_flags(app, s, text);
  app.add_option("--memory-limit", text.memory_limit, "refuse to use more, e.g. 8GiB");
  app.add_flag("--no-verify-base", text.no_verify, "skip hashing the base before and after");
}

}  // namespace

void add_method_flags(CLI::App& app, FinetuneSettings& s, FinetuneText& text) {
  const auto& real = real_number();
  const auto& whole = whole_number();
  app.add_option(
         "--method", text.methods,
         "LIST of lora, prompt, prefix, llama-adapter, bottleneck, bitfit, ia3, or full alone "
         "(all weights): what is trained; see docs/methods.md")
      ->default_str("lora");
  app.add_option("--rank", s.rank, "rank of A and B (16)")->check(whole);
  app.add_option("--alpha", s.alpha, "scale is alpha / rank (default: the rank)")->check(real);
  app.add_option("--dropout", s.dropout,
                 "on the adapter's input; a GPU keeps the masks, a bit an element")
      ->check(real);
  app.add_option("--targets", text.targets, kTargetsHelp)->type_name(kList);
  app.add_option("--bottleneck", s.bottleneck, "rows of bottleneck adapters")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--bottleneck-kind", s.bottleneck_kind, "pfeiffer, houlsby or parallel")
      ->capture_default_str();
  app.add_option("--layers", text.layers, "only these layers, e.g. 0-3,7 (all)");
  app.add_option("--rank-pattern", text.rank_pattern,
                 "ranks of single modules, KEY=R,...; a key is a name, the end of a path or a "
                 "regular expression for it");
  app.add_flag("--dora", s.dora, "DoRA: train the lengths of the weight's rows too");
  app.add_option("--virtual-tokens", s.virtual_tokens,
                 "of prompt and prefix, and vectors a layer of llama-adapter (20)")
      ->check(whole);
  app.add_option("--prefix-hidden", s.prefix_hidden, "prefix is made by an MLP of this hidden size")
      ->check(whole);
  app.add_option("--adapter-layers", s.adapter_layers,
                 "layers of llama-adapter, from the top (all but the first two)")
      ->check(whole);
}

void add_memory_flags(CLI::App& app, FinetuneSettings& s, FinetuneText& text) {
  app.add_flag("--fast-reduce", s.fast_reduce, kFastReduceHelp);
  app.add_option("--base-precision", text.base_precision, kBasePrecisionHelp)
      ->capture_default_str();
  app.add_option("--keep-dense", text.keep_dense, kKeepDenseHelp)->type_name(kList);
  app.add_option("--fp8-products", s.fp8_products, kFp8ProductsHelp)->capture_default_str();
  app.add_option("--recompute", text.recompute, kRecomputeHelp)
      ->type_name(kList)
      ->capture_default_str();
  app.add_option("--offload-base", text.offload_base, kOffloadBaseHelp)->capture_default_str();
  app.add_option("--shard-base", text.shard_base, kShardBaseHelp)->capture_default_str();
  app.add_option("--memory", text.memory, kMemoryHelp);
}

void add_finetune_flags(CLI::App& app, FinetuneSettings& s, FinetuneText& text) {
  in_group(app, "Model and data", [&] { add_data_flags(app, s, text); });
  in_group(app, "Adapter", [&] { add_adapter_flags(app, s, text); });
  in_group(app, "Training", [&] { add_training_flags(app, s); });
  in_group(app, "Evaluation", [&] { add_evaluation_flags(app, s); });
  in_group(app, "Output", [&] { add_output_flags(app, s, text); });
  in_group(app, "Machine", [&] { add_machine_flags(app, s, text); });
}

// Converts what the flags gave as text.
void settle(FinetuneSettings& settings, const FinetuneText& text) {
  if (text.targets) settings.targets = parse_targets(*text.targets, "--targets");
  if (text.methods) settings.methods = parse_list(*text.methods, "--method");
  if (!text.layers.empty()) settings.layers = parse_layers(text.layers, "--layers");
  if (!text.rank_pattern.empty())
    settings.rank_pattern = parse_rank_pattern(text.rank_pattern, "--rank-pattern");
  if (!text.alpha_pattern.empty())
    settings.alpha_pattern = parse_alpha_pattern(text.alpha_pattern, "--alpha-pattern");
  settings.init = parse_lora_init(text.init);
  settings.base_precision = parse_base_precision(text.base_precision);
  if (!text.keep_dense.empty()) settings.keep_dense = parse_list(text.keep_dense, "--keep-dense");
  settings.recompute = parse_recompute(text.recompute);
  settings.streamed = parse_streamed_layers(text.offload_base, text.shard_base);
  settings.memory = parse_budget(text.memory);
  if (!text.memory_limit.empty()) settings.memory_limit = parse_bytes(text.memory_limit);
  settings.long_rows = long_rows(text.long_rows);
  settings.train_on = parse_train_on(text.train_on);
  if (!text.columns.empty()) settings.columns = Columns::parse(text.columns);
  settings.shuffle = !text.no_shuffle;
  text.processes.check();
  settings.verify_base = !text.no_verify;
}

}  // namespace lk::program
