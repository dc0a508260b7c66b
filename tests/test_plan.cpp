// The plan: would catch a plan that drifts from what a run really takes.
#include "lora/plan.h"
#include "lora/trainer.h"
#include "tensor/cpu/cpu_backend.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("the plan is the run: peaks by tag equal those of a real step") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    PlanRequest request;
    request.model = tiny_config();
    request.lora = tiny_lora();
    request.compute_dtype = dtype;
    request.batch = 3;
    request.grad_accum = 2;
    request.seq_len = 50;
    Plan plan = plan_training(request);

    auto backend = make_cpu_backend(CpuMode::Reference);
    ModelConfig config = tiny_config();
    Transformer model(*backend, config, random_weights(*backend, config, dtype, 1), dtype, 50);
    Adapter adapter(model, tiny_lora());
    Trainer trainer(model, adapter, {});
    Row row;
    row.ids.assign(50, 1);
    row.supervised.assign(50, 1);
    std::vector<const Row*> rows(3, &row);
    trainer.step(std::vector{rows, rows});
    CHECK(plan.trainable_parameters == adapter.n_parameters());
    CHECK(plan.base_parameters == config.n_parameters());
    MemoryReport real = memory_report(*backend);
    for (const MemoryRow& r : real.rows) {
      for (const MemoryRow& p : plan.memory.rows) {
        if (p.tag != r.tag || r.tag == "workspace") continue;  // a device's own scratch may differ
        CAPTURE(r.tag);
        CHECK(p.peak_bytes == r.peak_bytes);
      }
    }
    CHECK(std::abs(static_cast<double>(plan.memory.peak_bytes) /
                       static_cast<double>(real.peak_bytes) -
                   1) < 0.05);
    for (const Plan::Option& o : plan.options) CHECK(o.peak_bytes > 0);
  }
}

TEST_CASE("known counts: Llama-2-7B with rank 16 on all projections") {
  PlanRequest request;
  request.model = named_shape("llama2-7b");
  request.lora.shape = {16, 16, 0};
  request.lora.targets = {"all-linear"};
  request.compute_dtype = DType::BF16;
  request.batch = 1;
  request.seq_len = 64;
  Plan plan = plan_training(request);
  CHECK(plan.base_parameters == 6738415616);
  // per layer: q,k,v,o 16 (4096 + 4096) each, gate, up, down 16 (4096 + 11008) each; 32 layers
  CHECK(plan.trainable_parameters == 32 * 16 * (4 * 8192 + 3 * 15104));
  for (const MemoryRow& r : plan.memory.rows) {
    if (r.tag == "gradients") CHECK(r.peak_bytes == 4 * plan.trainable_parameters);
    if (r.tag == "optimizer") CHECK(r.peak_bytes == 8 * plan.trainable_parameters);
  }
}
