// bench_step: time of a whole LoRA training step (forward, backward, clip, AdamW) for a named shape
// with random weights and random tokens. One JSON line on stdout; what it measures is what finetune
// runs.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "../tools/program.h"
#include "cuda/open_device.h"
#include "io/json.h"
#include "lora/inference.h"
#include "lora/proof.h"
#include "lora/trainer.h"

namespace {

using namespace lk;

struct Settings {
  std::string shape = "smollm2-135m", targets = "all-linear", device = "auto", dtype = "auto";
  std::int64_t batch = 2, seq_len = 256, rank = 8, steps = 10, warmup = 3;
};

std::vector<Row> random_rows(const ModelConfig& config, const Settings& s) {
  std::mt19937_64 rng(1);
  std::vector<Row> rows(static_cast<std::size_t>(s.batch));
  for (Row& row : rows) {
    row.ids.resize(static_cast<std::size_t>(s.seq_len));
    row.supervised.assign(row.ids.size(), 1);
    for (std::int32_t& id : row.ids)
      id = static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(config.vocab_size));
  }
  return rows;
}

// Memory of the process: its high-water mark, in bytes.
std::int64_t peak_rss() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

int bench(const Settings& s) {
  if (s.batch < 1 || s.seq_len < 2 || s.steps < 1 || s.warmup < 0)
    throw UsageError("--batch, --steps must be at least 1, --seq-len at least 2");
  std::unique_ptr<Backend> backend = open_device(s.device);
  const DType dtype = parse_compute_dtype(s.dtype, *backend);
  ModelConfig config = named_shape(s.shape);
  Transformer model(*backend, config, random_weights(*backend, config, dtype, 1), dtype, s.seq_len);
  LoraConfig lora;
  lora.shape = {s.rank, static_cast<double>(s.rank), 0};
  lora.targets = program::parse_list(s.targets, "--targets");
  Adapter adapter(model, lora);
  TrainerConfig trainer_config;
  trainer_config.schedule = {ScheduleKind::Constant, 1e-4, 0, s.warmup + s.steps};
  Trainer trainer(model, adapter, trainer_config);
  std::vector<Row> rows = random_rows(config, s);
  std::vector<std::vector<const Row*>> micro(1);
  for (const Row& row : rows) micro[0].push_back(&row);
  std::vector<double> seconds;
  double first = 0, last = 0;
  for (std::int64_t i = 0; i < s.warmup + s.steps; ++i) {
    StepReport r = trainer.step(micro);
    if (i == 0) first = r.loss;
    last = r.loss;
    if (i >= s.warmup) seconds.push_back(r.seconds);
    program::progress(concat("step ", r.step, "  ", r.seconds * 1e3, " ms"), false);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  MemoryReport memory = memory_report(*backend);
  program::message(memory_table(memory));
  OrderedJson out = {{"engine", "lorikeet"},
                     {"shape", s.shape},
                     {"device", backend->name()},
                     {"description", backend->description()},
                     {"dtype", dtype_name(dtype)},
                     {"batch", s.batch},
                     {"seq_len", s.seq_len},
                     {"rank", s.rank},
                     {"targets", s.targets},
                     {"step_seconds", median},
                     {"step_seconds_min", seconds.front()},
                     {"step_seconds_max", seconds.back()},
                     {"tokens_per_second", static_cast<double>(s.batch * s.seq_len) / median},
                     {"first_loss", first},
                     {"last_loss", last},
                     {"peak_rss_bytes", peak_rss()},
                     {"device_peak_bytes", memory.peak_bytes},
                     {"device_reserved_bytes", memory.reserved_bytes},
                     {"driver_allocations", memory.driver_allocations}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Time of one LoRA training step on random weights; one JSON line.", "bench_step");
  Settings s;
  const auto& whole = program::whole_number();
  app.add_option("--shape", s.shape, "named shape")->capture_default_str();
  app.add_option("--batch", s.batch, "rows")->check(whole)->capture_default_str();
  app.add_option("--seq-len", s.seq_len, "tokens a row")->check(whole)->capture_default_str();
  app.add_option("--rank", s.rank, "LoRA rank")->check(whole)->capture_default_str();
  app.add_option("--targets", s.targets, "modules")->capture_default_str();
  app.add_option("--dtype", s.dtype, "auto, f32, bf16")->capture_default_str();
  app.add_option("--device", s.device, "auto, cpu, cuda:0")->capture_default_str();
  app.add_option("--steps", s.steps, "timed steps")->check(whole)->capture_default_str();
  app.add_option("--warmup", s.warmup, "steps before")->check(whole)->capture_default_str();
  return program::run(app, argc, argv, [&] { return bench(s); });
}
