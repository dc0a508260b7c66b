#include "lora/plan.h"

#include <algorithm>
#include <cstdio>

#include "io/json.h"
#include "lora/trainer.h"
#include "tensor/plan_backend.h"

namespace lk {
namespace {

// Weights with shapes and no values.
ModelWeights blank_weights(Backend& backend, const ModelConfig& config, DType dtype) {
  ModelWeights w;
  for (const WeightSlot& slot : weight_slots(config, w))
    *slot.weight = Weight(slot.name, backend.empty(Tag::Weights, dtype, slot.shape));
  if (config.tie_embeddings) w.head = w.embedding;
  return w;
}

std::vector<std::int64_t> lengths(const PlanRequest& r) {
  if (!r.row_lengths.empty()) return r.row_lengths;
  return std::vector<std::int64_t>(static_cast<std::size_t>(r.batch), r.seq_len);
}

std::int64_t longest(const PlanRequest& r) {
  std::vector<std::int64_t> all = lengths(r);
  return *std::max_element(all.begin(), all.end());
}

Plan run(const PlanRequest& r) {
  std::unique_ptr<Backend> backend = make_plan_backend(r.on_cpu);
  Plan plan;
  {
    ModelConfig config = r.model;
    Transformer model(*backend, config, blank_weights(*backend, config, r.compute_dtype),
                      r.compute_dtype, r.seq_len);
    Adapter adapter(model, r.lora);
    Trainer trainer(model, adapter, {});
    std::vector<Row> rows;
    for (std::int64_t length : lengths(r)) {
      Row row;
      row.ids.assign(static_cast<std::size_t>(length), 0);
      row.supervised.assign(static_cast<std::size_t>(length), 1);
      rows.push_back(std::move(row));
    }
    std::vector<const Row*> batch;
    for (const Row& row : rows) batch.push_back(&row);
    // Micro-batches after the second repeat what the second needs.
    std::vector<std::vector<const Row*>> micro(r.grad_accum > 1 ? 2 : 1, batch);
    trainer.step(micro);
    plan.base_parameters = model.n_parameters();
    plan.trainable_parameters = adapter.n_parameters();
    plan.memory = memory_report(*backend);
  }
  return plan;
}

}  // namespace

Plan plan_training(const PlanRequest& request) {
  Plan plan = run(request);
  auto add = [&](std::string flag, const PlanRequest& cheaper) {
    plan.options.push_back({std::move(flag), run(cheaper).memory.peak_bytes});
  };
  if (request.batch > 1) {
    PlanRequest r = request;
    r.batch = 1;
    r.grad_accum = request.grad_accum * request.batch;
    r.row_lengths = {longest(request)};
    add(concat("--batch 1 --grad-accum ", r.grad_accum, " (same result)"), r);
  }
  if (request.compute_dtype == DType::F32) {
    PlanRequest r = request;
    r.compute_dtype = DType::BF16;
    add("--dtype bf16", r);
  }
  if (longest(request) >= 128) {
    PlanRequest r = request;
    r.seq_len = longest(request) / 2;
    for (std::int64_t& n : r.row_lengths) n = std::min(n, r.seq_len);
    add(concat("--seq-len ", r.seq_len, " --truncate"), r);
  }
  std::stable_sort(plan.options.begin(), plan.options.end(),
                   [](const auto& a, const auto& b) { return a.peak_bytes < b.peak_bytes; });
  return plan;
}

std::string plan_text(const PlanRequest& request, const Plan& plan) {
  char text[256];
  std::snprintf(text, sizeof text,
                "plan: %s, %lld rows of up to %lld tokens at a time, rank %lld\n"
                "base parameters       %14lld  frozen\n"
                "trainable parameters  %14lld  (%.3f %% of the base)\n",
                dtype_name(request.compute_dtype), static_cast<long long>(lengths(request).size()),
                static_cast<long long>(longest(request)),
                static_cast<long long>(request.lora.shape.rank),
                static_cast<long long>(plan.base_parameters),
                static_cast<long long>(plan.trainable_parameters),
                100.0 * static_cast<double>(plan.trainable_parameters) /
                    static_cast<double>(std::max<std::int64_t>(plan.base_parameters, 1)));
  std::string out = text + memory_table(plan.memory);
  for (const Plan::Option& o : plan.options) {
    std::snprintf(text, sizeof text, "  with %-40s peak %10.2f MiB\n", o.flag.c_str(),
                  static_cast<double>(o.peak_bytes) / (1 << 20));
    out += text;
  }
  return out;
}

Json plan_to_json(const Plan& plan) {
  Json options = Json::array();
  for (const Plan::Option& o : plan.options)
    options.push_back({{"flags", o.flag}, {"peak_bytes", o.peak_bytes}});
  return {{"base_parameters", plan.base_parameters},
          {"trainable_parameters", plan.trainable_parameters},
          {"memory", memory_to_json(plan.memory)},
          {"options", options}};
}

}  // namespace lk
