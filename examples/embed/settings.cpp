// Settings as designated initialisers: what a field leaves out has its default, without a warning.
#include <lorikeet/lorikeet.h>

#include <cstdio>

int main() {
  const lk::LoraConfig lora{.shape = {.rank = 16, .alpha = 32}, .targets = {"all-linear"}};
  const lk::TrainerConfig trainer{
      .adamw = {.weight_decay = 0.01f},
      .schedule = {.kind = lk::ScheduleKind::Linear, .lr = 1e-3, .total_steps = 100}};
  const lk::SamplingSettings sampling{.max_tokens = 20, .temperature = 0.7f};
  const lk::InferenceSettings inference{.model = "model.gguf", .dtype = "bf16"};
  const lk::FinetuneSettings run{.model = "model.gguf", .data = "rows.jsonl", .out = "adapter"};
  const lk::DatasetOptions rows{.seq_len = 512};
  const lk::Row row{.ids = {1, 2, 3}, .supervised = {0, 1, 1}};
  const lk::PlanRequest plan{.methods = {.lora = lora}, .batch = 4};
  std::printf("%lld %g %lld %s %s %lld %lld %lld\n", static_cast<long long>(lora.shape.rank),
              trainer.schedule.lr, static_cast<long long>(sampling.max_tokens),
              inference.dtype.c_str(), run.out.c_str(), static_cast<long long>(rows.seq_len),
              static_cast<long long>(row.n_supervised()), static_cast<long long>(plan.batch));
}
