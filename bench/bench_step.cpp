// bench_step: times a whole LoRA training step (forward, backward, clip, AdamW) of a named shape or
// a config.json with random weights, or of a loaded model, on random tokens. It times what finetune
// runs.
//
// The step's time is the median of unprofiled steps, or their mean with several processes. After them
// come, in the same process: the frozen products alone (the limit that the step is compared with), the
// device's roofs and, with --profile, one more step on a TimingBackend. A summary goes to stderr, one
// JSON line to stdout.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <optional>
#include <random>

#include "../tools/processes.h"
#include "../tools/program.h"
#include "cuda/open_device.h"
#include "dist/shared_step.h"
#include "io/json.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "modelfile/config.h"
#include "modelfile/load.h"
#include "modelfile/named_shapes.h"
#include "nn/streamed_base.h"
#include "random_base.h"
#include "roofline.h"
#include "run/inference.h"
#include "run/plan.h"
#include "run/shared_run.h"

namespace {

using namespace lk;
using Clock = std::chrono::steady_clock;

struct Settings {
  std::string shape = "smollm2-135m", config, model, targets = "all-linear", device = "auto",
              dtype = "auto", base_precision = "auto", keep_dense, fp8_products = "auto";
  program::ProcessFlags processes;
  std::string memory;              // a budget; if given, recompute is chosen to fit it
  std::string offload_base = "0";  // layers of the base that wait in host memory
  std::string shard_base = "0";    // or in parts on the GPUs of the processes
  Recompute recompute;             // what is computed again instead of kept
  std::int64_t batch = 2, micro_batches = 1, seq_len = 256, rank = 8, steps = 10, warmup = 4;
  std::int64_t shortest = 0;  // rows have from so many tokens to seq_len, evenly spread; 0: seq_len
  double dropout = 0;
  bool dora = false, profile = false, no_record = false, fast_reduce = false;
  std::vector<std::int64_t> lengths() const {
    std::vector<std::int64_t> all;
    for (std::int64_t row = 0; row < batch; ++row)
      all.push_back(shortest == 0 || batch == 1
                        ? seq_len
                        : shortest + (seq_len - shortest) * row / (batch - 1));
    return all;
  }
  std::int64_t tokens() const {
    const std::vector<std::int64_t> all = lengths();
    return std::accumulate(all.begin(), all.end(), std::int64_t{0});
  }
  // Micro-batches of a step of so many processes.
  std::int64_t all_micro_batches(int processes) const { return micro_batches * processes; }
  // How far a token of the batch can look back at most, in the mean.
  std::int64_t mean_context() const {
    std::int64_t squares = 0;
    for (std::int64_t n : lengths()) squares += n * n;
    return squares / tokens();
  }
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The process's high-water mark of memory, in bytes.
std::int64_t peak_rss() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

LoraConfig lora_config(const Settings& s) {
  LoraConfig c;
  c.shape = {s.rank, static_cast<double>(s.rank), static_cast<float>(s.dropout)};
  c.shape.dora = s.dora;
  c.targets = program::parse_list(s.targets, "--targets");
  return c;
}

// A transport that can be asked how long its exchanges take, waiting for the other processes included.
class TimedTransport final : public Transport {
 public:
  TimedTransport(std::unique_ptr<Transport> inner, Backend& backend)
      : inner_(std::move(inner)), backend_(backend) {}
  void exchange(std::span<const Piece> sends, std::span<const Piece> receives) override {
    if (!timed) return inner_->exchange(sends, receives);
    backend_.synchronize();
    const Clock::time_point start = Clock::now();
    inner_->exchange(sends, receives);
    backend_.synchronize();
    seconds += seconds_since(start);
  }
  void abandon() noexcept override { inner_->abandon(); }
  bool timed = false;
  double seconds = 0;

 private:
  std::unique_ptr<Transport> inner_;
  Backend& backend_;
};

// A model with a fresh adapter, and one step of it.
class Run {
 public:
  Run(Backend& backend, const ModelConfig& config, ModelWeights weights, DType dtype,
      const Settings& s, World* world = nullptr)
      : model_(backend, config, std::move(weights), dtype, s.seq_len),
        adapter_(model_, lora_config(s)) {
    adapter_.lay_out_for_training();
    TrainerConfig settings = training(s);
    if (world && world->size() > 1) {
      transport_ = std::make_unique<TimedTransport>(
          open_transport(*world, backend, program::message), backend);
      shared_.emplace(model_, adapter_, transport_.get(), world->rank(), world->size(),
                      SharedStep::Settings{settings.clip, s.fast_reduce});
      shared_->join(settings);
    }
    trainer_.emplace(model_, adapter_, settings);
    model_.set_recompute(s.recompute);
    std::mt19937_64 rng(1);
    rows_.reserve(static_cast<std::size_t>(s.batch));
    std::vector<const Row*> rows;
    for (std::int64_t n : s.lengths()) {
      Row& row = rows_.emplace_back();
      row.ids.resize(static_cast<std::size_t>(n));
      row.supervised.assign(row.ids.size(), 1);
      for (std::int32_t& id : row.ids)
        id = static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(config.vocab_size));
      rows.push_back(&row);
    }
    micro_.assign(static_cast<std::size_t>(s.all_micro_batches(world ? world->size() : 1)),
                  make_host_batch(rows));
  }
  // Submits a step as finetune does: its report comes when the device is done, or with the next
  // step.
  void submit() { trainer_->submit(micro_); }
  std::optional<StepReport> next_report(bool drain) { return trainer_->next_report(drain); }
  StepReport step() { return trainer_->step(micro_); }
  // Seconds of a step on the device's clock when the host is far ahead of it: the first of n + 1
  // steps is running before the clock starts, and all others are submitted while it runs.
  double device_seconds(Backend& backend, int n) {
    std::unique_ptr<DeviceClock> clock = backend.make_clock();
    submit();
    clock->mark();
    for (int i = 0; i < n; ++i) submit();
    clock->mark();
    const double seconds = clock->read().back() / n;
    while (next_report(true)) {
    }
    return seconds;
  }
  // Seconds of a step and of its exchanges, without any overlap of the two; 0 for one process.
  struct Reduction {
    double step = 0, exchange = 0;
  };
  Reduction reduction(int n) {
    if (!transport_) return {};
    transport_->timed = true;
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < n; ++i) step();
    transport_->timed = false;
    return {seconds_since(start) / n, std::exchange(transport_->seconds, 0) / n};
  }
  std::vector<std::string> adapted() const {
    std::vector<std::string> paths;
    for (const LoraLinear* layer : adapter_.layers()) paths.push_back(layer->path());
    return paths;
  }

  const ModelWeights& weights() const { return model_.weights(); }

 private:
  static TrainerConfig training(const Settings& s) {
    TrainerConfig c;
    c.schedule = {ScheduleKind::Constant, 1e-4, 0, s.warmup + s.steps};
    c.record = !s.no_record;
    return c;
  }

  Transformer model_;
  Adapter adapter_;
  std::unique_ptr<TimedTransport> transport_;
  std::optional<SharedStep> shared_;  // of several processes
  std::optional<Trainer> trainer_;
  std::vector<Row> rows_;
  std::vector<HostBatch> micro_;
};

bench::Profile profile_step(Backend& backend, const ModelConfig& config,
                            const ModelWeights& weights, DType dtype, const Settings& s,
                            const bench::Roofs& roofs) {
  backend.trim();  // the second model's memory comes in other blocks
  bench::TimingBackend timing(backend, roofs, weights.head);
  Run run(timing, config, weights, dtype, s);
  run.step();  // the first step allocates
  timing.start();
  run.step();
  return timing.finish();
}

OrderedJson profile_json(const bench::Profile& profile) {
  OrderedJson families = OrderedJson::object();
  for (int i = 0; i < kFamilyCount; ++i) {
    const bench::FamilyTime& f = profile.families[static_cast<std::size_t>(i)];
    if (f.calls == 0) continue;
    families[bench::family_name(static_cast<OpFamily>(i))] = {
        {"seconds", f.seconds},
        {"calls", f.calls},
        {"flops", f.flops},
        {"bytes", f.bytes},
        {"of_roof", f.roof_seconds / f.seconds}};
  }
  return {{"seconds", profile.seconds}, {"families", families}};
}

int run_bench(Settings s, World& world, Clock::time_point start) {
  if (s.batch < 1 || s.seq_len < 2 || s.steps < 1 || s.warmup < 0)
    throw UsageError("--batch, --steps must be at least 1, --seq-len at least 2");
  require(s.micro_batches >= 1 && s.all_micro_batches(world.size()) <= kMostGradAccum,
          "--micro-batches must be at least 1, and ", kMostGradAccum, " in all at most");
  require(!s.fast_reduce || (world.size() > 1 && s.micro_batches > 1),
          "--fast-reduce: is for several --micro-batches of several --processes");
  if (s.shortest != 0 && (s.shortest < 2 || s.shortest > s.seq_len))
    throw UsageError("--shortest: from 2 to --seq-len");
  std::unique_ptr<ModelFile> file;
  if (!s.model.empty()) file = std::make_unique<ModelFile>(s.model);
  const ModelConfig config = file                ? file->config()
                             : !s.config.empty() ? config_from_json(read_json(s.config), s.config)
                                                 : named_shape(s.shape);
  std::unique_ptr<Backend> backend = open_device(own_device(world, s.device));
  const DType dtype = parse_compute_dtype(s.dtype, *backend);
  PlanRequest request;
  request.model = config, request.methods.lora = lora_config(s);
  request.compute_dtype = dtype, request.device = backend->name();
  BaseStorage storage{parse_base_precision(s.base_precision)};
  storage.fp8_products = uses_fp8_products(s.fp8_products, config, *backend, dtype);
  const bool fp8 =
      storage.precision == BasePrecision::Fp8 || storage.precision == BasePrecision::Fp8Head;
  if (fp8 && !storage.fp8_products && s.fp8_products == "auto")
    program::message(concat("no products in FP8: ", no_fp8_products(config, *backend, dtype)));
  if (!s.keep_dense.empty()) storage.keep_dense = program::parse_list(s.keep_dense, "--keep-dense");
  storage.streamed = parse_streamed_layers(s.offload_base, s.shard_base);
  require_streamable(storage.streamed, *backend);
  request.formats = file ? held_formats(*file, storage) : held_formats(config, storage);
  request.processes = world.size() > 1 ? world.size() : 0, request.fast_reduce = s.fast_reduce;
  request.grad_accum = s.all_micro_batches(world.size());
  request.batch = s.batch, request.seq_len = s.seq_len, request.recompute = s.recompute;
  request.row_lengths = s.lengths();
  request.streamed = storage.streamed;
  const std::int64_t budget = program::parse_budget(s.memory);
  const Plan plan = budget > 0 ? plan_within(request, budget) : plan_training(request);
  if (budget > 0) check_fits(request, plan, budget, "--memory allows");
  check_host_fits(plan, world.local_size());
  backend->set_memory_limit(budget);
  s.recompute = request.recompute;
  const std::int64_t planned_peak = plan.memory.peak_bytes;

  // 1. The step.
  std::vector<double> seconds;
  double ready = 0, first_step = 0, first_loss = 0, last_loss = 0, mean = 0, device = 0;
  std::vector<std::string> adapted;
  MemoryReport memory;
  Run::Reduction reduction;
  ModelWeights weights;  // as laid out by the model
  {
    const ShardGroup group = shard_group(world);
    ModelWeights given =
        file ? load_weights(*backend, *file, dtype, {.storage = storage, .group = &group}).weights
             : bench::random_base(*backend, config, dtype, storage, &group);
    backend->synchronize();
    ready = seconds_since(start);
    Run run(*backend, config, std::move(given), dtype, s, &world);
    adapted = run.adapted();
    const std::int64_t n_steps = s.warmup + s.steps;
    // A step of several processes is reported with the next one, and the last two come together: their
    // reports don't say how long a step took, so the clock runs over all timed steps, drained at both
    // ends.
    const bool several = world.size() > 1;
    Clock::time_point timed = Clock::now();
    for (std::int64_t i = 0; i < n_steps; ++i) {
      run.submit();
      const bool warm = i + 1 == s.warmup;
      while (std::optional<StepReport> r =
                 run.next_report(i == 0 || (several && warm) || i + 1 == n_steps)) {
        if (r->step == 1) first_loss = r->loss, first_step = seconds_since(start);
        last_loss = r->loss;
        if (r->step > s.warmup) seconds.push_back(r->seconds);
        program::progress(concat("step ", r->step, "  ", r->seconds * 1e3, " ms"), false);
      }
      if (!several || !(warm || i + 1 == n_steps)) continue;
      backend->synchronize();
      if (warm) timed = Clock::now();
    }
    if (several) seconds = {seconds_since(timed) / static_cast<double>(s.steps)};
    memory = memory_report(*backend);
    mean =
        std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
    if (backend->traits().can_record) device = run.device_seconds(*backend, 8);
    reduction = run.reduction(4);
    weights = run.weights();
  }
  // Microseconds that each process computes in a step: all wait for the slowest.
  const std::vector<std::int64_t> own =
      world.gather(std::llround(1e6 * (reduction.step - reduction.exchange)));
  if (!world.leads()) {
    if (storage.streamed.in_parts()) leave_base(world, *backend);
    return 0;
  }
  backend->set_memory_limit(0);  // the measurements below are not part of the step
  const std::int64_t rss = peak_rss();
  std::sort(seconds.begin(), seconds.end());
  const double typical = seconds[seconds.size() / 2];
  const double tokens_per_second =
      static_cast<double>(s.tokens() * s.all_micro_batches(world.size())) / typical;

  // 2. The best time that it could have.
  const double limit =
      static_cast<double>(s.micro_batches) *
      bench::frozen_gemm_seconds(*backend, weights, dtype, adapted, s.tokens(),
                                 static_cast<int>(std::min<std::int64_t>(s.steps, 10)));
  const bench::Roofs roofs = bench::measure_roofs(*backend, dtype);
  const double useful =
      bench::useful_flops_per_token(config, s.mean_context()) * tokens_per_second / world.size();
  const double nominal =
      dtype == DType::BF16 ? bench::nominal_bf16_flops(backend->description()) : 0;

  const std::string shape = !s.model.empty() ? s.model : !s.config.empty() ? s.config : s.shape;
  const char* const products = storage.streamed.on_host()
                                   ? "the frozen products, their weights' copies included,"
                                   : "the frozen products";
  char text[512];
  std::snprintf(text, sizeof text,
                "%s, %lld x %lld, rank %lld, %s on %s\n"
                "  %.0f tokens/s: %.2f ms a step (%.2f to %.2f), the first done %.2f s after "
                "start, weights there after %.2f\n"
                "  %.3f x %s alone (%.2f ms)\n"
                "  recompute %s, peak %.2f GiB, planned %.2f GiB\n"
                "  %.1f useful TFLOP/s: MFU %.1f %% of the %.1f TFLOP/s of a large product here",
                shape.c_str(), static_cast<long long>(s.batch), static_cast<long long>(s.seq_len),
                static_cast<long long>(s.rank), dtype_name(dtype), backend->name().c_str(),
                tokens_per_second, typical * 1e3, seconds.front() * 1e3, seconds.back() * 1e3,
                first_step, ready, typical / limit, products, limit * 1e3,
                recompute_text(s.recompute).c_str(),
                static_cast<double>(memory.peak_bytes) / (1 << 30),
                static_cast<double>(planned_peak) / (1 << 30), useful * 1e-12,
                100 * useful / roofs.flops_per_second, roofs.flops_per_second * 1e-12);
  program::message(text);
  if (device > 0)
    program::message(concat("  GPU fed ", 100 * std::min(1.0, device / mean),
                            " % of the time: ", device * 1e3, " of ", mean * 1e3, " ms a step"));
  if (nominal > 0)
    program::message(concat("  MFU ", 100 * useful / nominal, " % of the data sheet's ",
                            nominal * 1e-12, " TFLOP/s"));
  if (world.size() > 1)
    program::message(
        concat("  reduction ", reduction.exchange * 1e3, " of ", reduction.step * 1e3,
               " ms a step without overlap; a process computes ",
               static_cast<double>(*std::min_element(own.begin(), own.end())) * 1e-3, " to ",
               static_cast<double>(*std::max_element(own.begin(), own.end())) * 1e-3, " ms"));
  program::message(memory_table(memory));

  OrderedJson out = {{"engine", "lorikeet"},
                     {"shape", shape},
                     {"device", backend->name()},
                     {"description", backend->description()},
                     {"dtype", dtype_name(dtype)},
                     {"processes", world.size()},
                     {"reduction_seconds", reduction.exchange},
                     {"reduced_step_seconds", reduction.step},
                     {"process_microseconds", own},
                     {"fast_reduce", s.fast_reduce},
                     {"batch", s.batch},
                     {"micro_batches", s.micro_batches},
                     {"seq_len", s.seq_len},
                     {"shortest", s.shortest},
                     {"tokens", s.tokens()},
                     {"trainable", plan.trainable_parameters},
                     {"rank", s.rank},
                     {"targets", s.targets},
                     {"dropout", s.dropout},
                     {"base", describe_formats(request.formats)},
                     {"recompute", recompute_text(s.recompute)},
                     {"memory_budget_bytes", budget},
                     {"planned_peak_bytes", planned_peak},
                     {"step_seconds", typical},
                     {"step_seconds_min", seconds.front()},
                     {"step_seconds_max", seconds.back()},
                     {"tokens_per_second", tokens_per_second},
                     {"first_step_seconds", first_step},
                     {"weights_ready_seconds", ready},
                     {"mean_step_seconds", mean},
                     {"device_step_seconds", device},
                     {"frozen_gemm_seconds", limit},
                     {"x", typical / limit},
                     {"useful_flops_per_second", useful},
                     {"roof_flops_per_second", roofs.flops_per_second},
                     {"roof_bytes_per_second", roofs.bytes_per_second},
                     {"nominal_flops_per_second", nominal},
                     {"first_loss", first_loss},
                     {"last_loss", last_loss},
                     {"peak_rss_bytes", rss},
                     {"device_peak_bytes", memory.peak_bytes},
                     {"device_reserved_bytes", memory.reserved_bytes},
                     {"offload_base", s.offload_base},
                     {"shard_base", s.shard_base},
                     {"offloaded_base_bytes", memory.offloaded_base_bytes},
                     {"offloaded_peak_bytes", memory.offloaded_peak_bytes},
                     {"driver_allocations", memory.driver_allocations},
                     {"memory", memory_to_json(memory)}};

  // 3. Where its time goes.
  if (s.profile) {
    bench::Profile profile = profile_step(*backend, config, weights, dtype, s, roofs);
    program::message(bench::profile_table(profile));
    out["profile"] = profile_json(profile);
    if (device > 0) {
      // Idle time between ops and idle time between steps: each reduces what the other leaves.
      const double between = 1 - profile.busy_seconds / profile.seconds;
      const double busy = std::min(1.0, device / mean) * (1 - between);
      program::message(concat("GPU busy at least ", 100 * busy, " % of the time (gaps between ops ",
                              100 * between, " %, with the marks' own)"));
      out["gpu_busy"] = busy;
    }
  }
  if (storage.streamed.in_parts()) leave_base(world, *backend);
  std::printf("%s\n", out.dump().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Clock::time_point start = Clock::now();
  CLI::App app("Time of one LoRA training step on random weights; one JSON line.", "bench_step");
  Settings s;
  std::string recompute = "none";
  const auto& whole = program::whole_number();
  auto* shape = app.add_option("--shape", s.shape, "named shape")->capture_default_str();
  auto* config = app.add_option("--config", s.config, "a model's config.json instead");
  config->excludes(shape);
  app.add_option("--model", s.model, "a model to load instead: .gguf file or Hugging Face folder")
      ->excludes(shape)
      ->excludes(config);
  app.add_option("--batch", s.batch, "rows")->check(whole)->capture_default_str();
  app.add_option("--micro-batches", s.micro_batches, "of --batch rows, in a step of each process")
      ->check(whole)
      ->capture_default_str();
  app.add_option("--seq-len", s.seq_len, "tokens a row")->check(whole)->capture_default_str();
  app.add_option("--shortest", s.shortest,
                 "rows of so many tokens to --seq-len, evenly spread and packed into one batch")
      ->check(whole);
  app.add_option("--rank", s.rank, "LoRA rank")->check(whole)->capture_default_str();
  app.add_option("--dropout", s.dropout, "on the adapter's input")->check(program::real_number());
  app.add_flag("--dora", s.dora, "magnitudes trained beside the factors");
  app.add_option("--targets", s.targets, "modules")->capture_default_str();
  app.add_option("--dtype", s.dtype, "auto, f32, bf16")->capture_default_str();
  app.add_option("--base-precision", s.base_precision, program::kBasePrecisionHelp)
      ->capture_default_str();
  app.add_option("--keep-dense", s.keep_dense, program::kKeepDenseHelp);
  app.add_option("--fp8-products", s.fp8_products, program::kFp8ProductsHelp)
      ->capture_default_str();
  app.add_option("--device", s.device, "auto, cpu, cuda:0")->capture_default_str();
  app.add_option("--steps", s.steps, "timed steps")->check(whole)->capture_default_str();
  app.add_option("--warmup", s.warmup, "steps before")->check(whole)->capture_default_str();
  auto* way = app.add_option("--recompute", recompute, program::kRecomputeHelp);
  app.add_option("--shard-base", s.shard_base, program::kShardBaseHelp)->capture_default_str();
  app.add_option("--offload-base", s.offload_base, program::kOffloadBaseHelp)
      ->capture_default_str();
  app.add_option("--memory", s.memory, program::kMemoryHelp)->excludes(way);
  app.add_flag("--no-record", s.no_record, "launch every kernel by itself: no CUDA graph");
  s.processes.add(app, "N or all: processes that share each step, with as much work for each");
  app.add_flag("--fast-reduce", s.fast_reduce, program::kFastReduceHelp);
  app.add_flag("--profile", s.profile, "one more step: time by op family, share of its roof");
  return program::run(app, argc, argv, [&] {
    s.recompute = parse_recompute(recompute);
    const program::SharedCommand shared(s.processes, s.device);
    if (shared.starts_others()) return shared.start(argc, argv);
    World world = shared.open_world();
    return telling_others(world, [&] { return run_bench(s, world, start); });
  });
}
