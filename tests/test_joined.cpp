// A model with joined projections computes what the plain one does, in any precision.
#include <random>

#include "cpu_ops.h"
#include "lora/joined.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "modelfile/base_precision.h"
#include "modelfile/weight_hash.h"
#include "parity.h"
#include "tensor/quantised_kernels.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

// A model with an adapter, joined or not, and what one backward gives.
struct JoinedSubject {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Adapter> adapter;

  JoinedSubject(DType dtype, const LoraConfig& config, bool joined,
                std::unique_ptr<Backend> device = make_cpu_backend(CpuMode::Reference),
                bool quantised = false, const std::string& family = "llama")
      : backend(std::move(device)) {
    const ModelConfig shape = as_family(tiny_config(), family);
    ModelWeights weights = random_weights(*backend, shape, dtype, 7);
    if (quantised) quantise_weights(*backend, shape, weights, {BasePrecision::Nf4, {"v_proj"}});
    model = std::make_unique<Transformer>(*backend, shape, std::move(weights), dtype, 256);
    adapter = std::make_unique<Adapter>(*model, config);
    if (joined) REQUIRE(join_projections(*model, *adapter));
    randomize_b(*adapter, 11, 0.5);
  }
  std::vector<std::vector<double>> loss_and_gradients(const std::vector<Row>& rows) {
    TokenBatch batch = make_batch(*backend, pointers(rows));
    Tape tape(*backend);
    adapter->zero_grad();
    Var loss = model->loss(tape, batch, 0.1, {true, 1, 0});
    tape.backward(loss);
    std::vector<std::vector<double>> all{to_host_f64(loss.value())};
    for (Parameter* p : adapter->parameters()) all.push_back(to_host_f64(p->grad()));
    return all;
  }
};

LoraConfig rank3(std::vector<std::string> targets) {
  LoraConfig c = tiny_lora(std::move(targets));
  c.shape = {3, 5, 0};
  return c;
}

LoraConfig rank8(std::vector<std::string> targets) {
  LoraConfig c = tiny_lora(std::move(targets));
  c.shape = {8, 16, 0};
  return c;
}

// Parts of one joined matrix with ranks of their own, all with scale 2.
LoraConfig mixed_ranks(std::int64_t one, std::int64_t other) {
  LoraConfig c = rank8({"all-linear"});
  c.wide_ranks = true;
  c.exceptions = {{"model.layers.0.self_attn.v_proj", {one, 2.0 * static_cast<double>(one)}},
                  {"model.layers.1.self_attn.q_proj", {other, 2.0 * static_cast<double>(other)}},
                  {"model.layers.1.mlp.up_proj", {one, 2.0 * static_cast<double>(one)}}};
  return c;
}

LoraConfig with_dropout(LoraConfig config) {
  config.shape.dropout = 0.3f;
  return config;
}

LoraConfig with_dora(LoraConfig config) {
  config.shape.dora = true;
  return config;
}

}  // namespace

TEST_CASE("projections that share a matrix may differ in rank, not in scale") {
  LoraConfig ranks = rank8({"all-linear"}), scales = ranks;
  ranks.exceptions = {{"model.layers.0.self_attn.v_proj", {4, 8}},
                      {"model.layers.1.mlp.up_proj", {16, 32}}};
  LoraConfig wide = ranks;  // wider than the matrices are
  wide.shape = {40, 80, 0};
  wide.wide_ranks = true;
  const auto rows = random_rows({9, 14, 4}, 3);
  for (const LoraConfig& config :
       {ranks, wide, with_dropout(ranks), with_dropout(wide), with_dropout(mixed_ranks(64, 16))}) {
    const auto want = JoinedSubject(DType::F64, config, false).loss_and_gradients(rows);
    const auto have = JoinedSubject(DType::F64, config, true).loss_and_gradients(rows);
    REQUIRE(have.size() == want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      check_close(have[i], want[i], 1e-11, {1e-13}, concat("gradient ", i));
  }
  scales.exceptions = {{"model.layers.1.self_attn.v_proj", {8, 64}}};
  JoinedSubject s(DType::F64, scales, false);
  CHECK(!join_projections(*s.model, *s.adapter));
  CHECK_NOTHROW(s.loss_and_gradients(rows));
}

TEST_CASE("joined projections give the plain model's loss and gradients, F64") {
  const std::vector<Row> rows = random_rows({9, 17, 1, 30}, 5);
  for (const LoraConfig& config :
       {tiny_lora(), with_dora(rank3({"all-linear"})), with_dora(rank3({"q_proj", "down_proj"})),
        rank3({"all-linear"}), rank3({"q_proj", "v_proj"}),
        rank3({"layers.1.mlp.up_proj", "layers.0.self_attn.o_proj"}),
        rank3({"layers.0.self_attn.k_proj", "layers.1.mlp.down_proj"}), with_dropout(tiny_lora()),
        with_dropout(rank3({"q_proj", "v_proj", "down_proj"}))}) {
    JoinedSubject plain(DType::F64, config, false), joined(DType::F64, config, true);
    auto want = plain.loss_and_gradients(rows), have = joined.loss_and_gradients(rows);
    REQUIRE(have.size() == want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      check_close(have[i], want[i], 1e-11, {1e-13}, concat("gradient ", i));
    TokenBatch batch = make_batch(*plain.backend, pointers(rows));
    TokenBatch same = make_batch(*joined.backend, pointers(rows));
    check_close(to_host_f64(joined.model->logits(same)), to_host_f64(plain.model->logits(batch)),
                1e-12, {1e-13}, "logits");
    plain.adapter->set_enabled(false), joined.adapter->set_enabled(false);
    check_close(to_host_f64(joined.model->logits(same)), to_host_f64(plain.model->logits(batch)),
                1e-12, {1e-13}, "logits of the base");
  }
}

TEST_CASE("every family's block can be joined, F64") {
  const std::vector<Row> rows = random_rows({9, 17, 1, 30}, 5);
  for (const std::string& family : kFamilies) {
    CAPTURE(family);
    const bool gpt2 = family == "gpt2";
    std::vector<LoraConfig> configs{tiny_lora(),
                                    with_dora(rank3({"all-linear"})),
                                    with_dropout(tiny_lora()),
                                    rank3(gpt2 ? std::vector<std::string>{"c_attn"}
                                               : std::vector<std::string>{"q_proj", "v_proj"}),
                                    rank3({gpt2 ? "h.1.mlp.c_fc" : "layers.1.mlp.up_proj",
                                           gpt2 ? "h.0.attn.c_proj" : "layers.0.self_attn.o_proj"}),
                                    rank3({gpt2 ? "h.1.mlp.c_proj" : "layers.1.mlp.down_proj"})};
    for (const LoraConfig& config : configs) {
      auto subject = [&](bool joined) {
        return JoinedSubject(DType::F64, config, joined, make_cpu_backend(CpuMode::Reference),
                             false, family);
      };
      JoinedSubject plain = subject(false), joined = subject(true);
      const auto want = plain.loss_and_gradients(rows), have = joined.loss_and_gradients(rows);
      REQUIRE(have.size() == want.size());
      for (std::size_t i = 0; i < want.size(); ++i)
        check_close(have[i], want[i], 1e-11, {1e-13}, concat(family, ", gradient ", i));
    }
  }
}

TEST_CASE("over quantised weights, joined or not, training is that over their dense values") {
  const std::vector<Row> rows = random_rows({9, 17, 4}, 5);
  const ModelConfig shape = tiny_config();
  auto run = [&](DType dtype, const LoraConfig& config, bool joined, bool quantised) {
    auto backend = make_cpu_backend(CpuMode::Reference);
    ModelWeights weights = random_weights(*backend, shape, dtype, 7);
    // Members of one matrix are stored differently: v and layer 1's up stay dense.
    quantise_weights(*backend, shape, weights,
                     {BasePrecision::Nf4, {"v_proj", "layers.1.mlp.up_proj"}});
    int n = 0;
    for (WeightSlot& slot : weight_slots(shape, weights)) {
      if (!slot.weight->quantised()) continue;
      ++n;
      if (quantised) continue;
      Tensor values = backend->empty(Tag::Weights, dtype, slot.shape);
      backend->quantised_kernels()->dequantise(values, *slot.weight);
      *slot.weight = Weight(slot.name, values);
    }
    CHECK(n == 11);
    Transformer model(*backend, shape, std::move(weights), dtype, 256);
    Adapter adapter(model, config);
    if (joined) REQUIRE(join_projections(model, adapter));
    randomize_b(adapter, 11, 0.5);
    TokenBatch batch = make_batch(*backend, pointers(rows));
    Tape tape(*backend);
    Var loss = model.loss(tape, batch, 0.1, {true, 1, 0});
    tape.backward(loss);
    std::vector<std::vector<double>> all{to_host_f64(loss.value())};
    for (Parameter* p : adapter.parameters()) all.push_back(to_host_f64(p->grad()));
    return all;
  };
  for (DType dtype : {DType::F64, DType::BF16})
    for (const LoraConfig& config : {tiny_lora(), rank3({"q_proj", "v_proj"}),
                                     rank3({"layers.0.mlp.down_proj", "layers.1.mlp.gate_proj"}),
                                     with_dropout(tiny_lora()), with_dora(tiny_lora())})
      for (bool joined : {false, true})
        CHECK(run(dtype, config, joined, true) == run(dtype, config, joined, false));
}

TEST_CASE("below the first trained layer nothing is recorded, joined or not, recomputed or not") {
  const std::vector<Row> rows = random_rows({9, 17}, 5);
  ModelConfig shape = tiny_config();
  shape.n_layers = 3;
  using Names = std::vector<std::string>;
  const Names last = {"gather_rows", "rmsnorm", "loss"};
  auto then = [](Names names, const Names& more) {
    names.insert(names.end(), more.begin(), more.end());
    return names;
  };
  auto recorded = [&](const std::string& target, bool joined, const std::string& recompute) {
    auto backend = make_cpu_backend(CpuMode::Reference);
    Transformer model(*backend, shape, random_weights(*backend, shape, DType::BF16, 7), DType::BF16,
                      256);
    Adapter adapter(model, tiny_lora({target}));
    if (joined) REQUIRE(join_projections(model, adapter));
    model.set_recompute(parse_recompute(recompute));
    const TokenBatch batch = make_batch(*backend, pointers(rows));
    Tape tape(*backend);
    Var loss = model.loss(tape, batch, 0.1, {true, 1, 0});
    Names names = tape.node_names();
    const std::int64_t before = backend->weight_gradient_matmuls();
    tape.backward(loss);
    CHECK(backend->weight_gradient_matmuls() - before == 2);
    return names;
  };
  const std::string down = "layers.2.mlp.down_proj", v = "layers.2.self_attn.v_proj";
  CHECK(recorded(down, false, "none") == then({"lora_linear", "add"}, last));
  CHECK(recorded(down, true, "none") == then({"joined_linear"}, last));
  CHECK(recorded(v, true, "none") == then({"joined_norm_linear", "qkv_attention", "joined_linear",
                                           "joined_norm_linear", "joined_gated_linear"},
                                          last));
  for (bool joined : {false, true})
    for (const std::string& target : {down, v})
      for (const char* recompute : {"keep-attention", "block"})
        CHECK(recorded(target, joined, recompute) == then({"checkpoint"}, last));
}

TEST_CASE("what no gradient reaches is not joined and keeps its memory") {
  JoinedSubject s(DType::BF16, rank3({"layers.1.mlp.down_proj"}), false);
  const LayerWeights before = s.model->weights().layers[1];
  const std::int64_t allocations = s.backend->ledger()[Tag::Weights].total_count;
  REQUIRE(join_projections(*s.model, *s.adapter));
  CHECK(s.backend->ledger()[Tag::Weights].total_count == allocations + 1);
  const LayerWeights& after = s.model->weights().layers[1];
  CHECK(after[Site::Q].weight.same_memory(before[Site::Q].weight));
  CHECK(after[Site::Up].weight.same_memory(before[Site::Up].weight));
  CHECK(!after[Site::Down].weight.same_memory(before[Site::Down].weight));
}

TEST_CASE("a plan serves the shapes that kernels are made for, and no others") {
  auto plan = [](std::int64_t K, std::int64_t rank, std::size_t parts, bool dropout, DType t) {
    ThinShape shape{K, 0, 0, t, dropout, {}};
    for (std::size_t p = 0; p < parts; ++p) {
      shape.parts.push_back({shape.out, shape.out + 64, shape.thin, rank});
      shape.out += 64, shape.thin += ThinPlan::columns_of(rank);
    }
    shape.thin = (shape.thin + 15) / 16 * 16;
    return ThinPlan(shape);
  };
  const ThinPlan qkv = plan(576, 16, 3, false, DType::BF16);
  CHECK(qkv.forward() == 3);
  CHECK(qkv.backward_a() == 3);
  CHECK(qkv.backward_b() == 1);
  CHECK(qkv.swiglu_backward() == 0);  // 48 thin columns are too many
  const ThinCut cut = qkv.cut_backward_b(1000);
  CHECK(cut.partial_dw == Shape{cut.row_slabs, 3 * 64, 16});
  CHECK(cut.partial_s == Shape{cut.column_slabs, 1000, 16});
  CHECK(qkv.kept_bits(1000) == Shape{16, 5, 3, 64 * 128 / 8});
  CHECK(plan(576, 16, 1, true, DType::BF16).swiglu_backward() == 1);
  CHECK(plan(576, 8, 2, true, DType::BF16).swiglu_backward() == 0);  // one mask at a time
  CHECK(plan(576, 40, 1, false, DType::BF16).backward_b() == 0);
  CHECK(plan(576, 40, 1, false, DType::BF16).backward_a() == 3);
  const ThinShape mixed{576, 128, 32, DType::BF16, false, {{0, 64, 0, 8}, {64, 128, 8, 16}}};
  CHECK(ThinPlan(mixed).backward_b() == 1);          // parts may differ in rank
  for (std::int64_t rank = 1; rank <= 16; ++rank) {  // every rank, not only multiples of 8
    const ThinPlan any = plan(576, rank, 3, false, DType::BF16);
    CHECK(any.forward() == (rank <= 8 ? 2 : 3));
    CHECK(any.backward_a() == any.forward());
    CHECK(any.backward_b() == 1);
  }
  const ThinShape between{576, 128, 16, DType::BF16, false, {{0, 64, 0, 4}, {64, 128, 4, 4}}};
  for (const ThinPlan& none :
       {ThinPlan(between), plan(577, 16, 1, false, DType::BF16),
        plan(576, 16, 5, false, DType::BF16), plan(576, 16, 1, false, DType::F32), ThinPlan()}) {
    CHECK(none.forward() == 0);
    CHECK(none.kept_bits(1000) == std::nullopt);
    CHECK(none.into_x() == 0);
    CHECK(none.backward_b() == 0);
    CHECK(none.backward_a() == 0);
    CHECK(none.swiglu_backward() == 0);
  }
}

TEST_CASE("joining changes no weight, and training afterwards none either") {
  for (const std::string& family : kFamilies) {
    CAPTURE(family);
    JoinedSubject s(DType::BF16, rank3({"all-linear"}), false, make_cpu_backend(CpuMode::Reference),
                    false, family);
    const std::string before = weights_sha256(s.model->weights());
    const std::int64_t bytes = s.backend->ledger()[Tag::Weights].live_bytes;
    REQUIRE(join_projections(*s.model, *s.adapter));
    CHECK(weights_sha256(s.model->weights()) == before);
    const Ledger& ledger = s.backend->ledger();
    CHECK(ledger[Tag::Weights].live_bytes == bytes);
    CHECK(ledger[Tag::Weights].peak_bytes == bytes);
    CHECK(ledger[Tag::Params].live_bytes ==
          4 * s.adapter->n_parameters() + s.adapter->copy_bytes());

    TrainerConfig config;
    config.schedule = {ScheduleKind::Constant, 5e-2, 0, 20};
    Trainer trainer(*s.model, *s.adapter, config);
    const std::vector<Row> rows = random_rows({9, 17}, 5);
    double first = 0, last = 0;
    for (int i = 0; i < 20; ++i) {
      StepReport r = trainer.step(std::vector<std::vector<const Row*>>{pointers(rows)});
      (i == 0 ? first : last) = r.loss;
    }
    CHECK(last < 0.97 * first);
    prove_memory(*s.backend, *s.adapter, bytes, s.backend->weight_gradient_matmuls(),
                 20);  // throws
    // The copies follow the masters, and nothing else moved.
    for (Parameter* p : s.adapter->parameters()) {
      std::vector<double> master = to_host_f64(p->value());
      for (double& v : master) v = static_cast<float>(static_cast<bf16>(static_cast<float>(v)));
      CHECK(to_host_f64(p->compute()) == master);
    }
    CHECK(weights_sha256(s.model->weights()) == before);
  }
}

// Joined, in BF16 on the GPU, the loss and gradients are as far from the F32 result as the plain
// model's, which rounds at other places, and have the same bits again. Roundings are luck, in one batch
// for all gradients alike: what counts is the geometric mean over several batches.
void check_joined_on_gpu(const LoraConfig& config, bool quantised, const std::string& family) {
  JoinedSubject exact(DType::F32, config, false, make_cpu_backend(CpuMode::Reference), quantised,
                      family),
      plain(DType::BF16, config, false, open_device("auto"), quantised, family),
      joined(DType::BF16, config, true, open_device("auto"), quantised, family);
  constexpr unsigned kBatches = 6;
  std::vector<double> logs;  // by gradient: the sum of log(joined's error / plain's)
  for (unsigned seed = 1; seed <= kBatches; ++seed) {
    const std::vector<Row> rows = random_rows({9, 17, 1, 130}, seed);
    const auto want = exact.loss_and_gradients(rows), other = plain.loss_and_gradients(rows),
               have = joined.loss_and_gradients(rows);
    CHECK(have == joined.loss_and_gradients(rows));
    logs.resize(want.size());
    for (std::size_t i = 1; i < want.size(); ++i) {
      double scale = 0, plain_error = 0, joined_error = 0;
      for (std::size_t j = 0; j < want[i].size(); ++j) {
        scale += want[i][j] * want[i][j];
        plain_error += std::pow(other[i][j] - want[i][j], 2);
        joined_error += std::pow(have[i][j] - want[i][j], 2);
      }
      if (scale == 0) CHECK(joined_error == 0);
      if (scale > 0)
        logs[i] += 0.5 * std::log((joined_error + 1e-6 * scale) / (plain_error + 1e-6 * scale));
    }
    CHECK(std::abs(have[0][0] - want[0][0]) < 0.01 * want[0][0]);
  }
  double all = 0;
  for (std::size_t i = 1; i < logs.size(); ++i) {
    const double ratio = std::exp(logs[i] / kBatches);
    CHECK_MESSAGE(ratio < 3, family, ", gradient ", i, ": ", ratio,
                  " times as far as the plain model's");
    all += logs[i] / static_cast<double>(kBatches * (logs.size() - 1));
  }
  CHECK_MESSAGE(std::exp(all) < 1.6, family, ": ", std::exp(all),
                " times as far as the plain model");
}

TEST_CASE("cuda: joined projections give the plain model's loss and gradients, BF16") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  for (const LoraConfig& config :
       {tiny_lora(), rank3({"q_proj", "v_proj", "down_proj"}), with_dropout(tiny_lora()),
        rank8({"all-linear"}), rank8({"q_proj", "v_proj"}),
        with_dropout(rank8({"q_proj", "v_proj", "up_proj"})), mixed_ranks(16, 24),
        mixed_ranks(32, 16), with_dropout(mixed_ranks(24, 16)), mixed_ranks(3, 16),
        with_dropout(mixed_ranks(64, 16)), with_dropout(mixed_ranks(16, 4)),
        with_dora(rank8({"all-linear"})), with_dora(rank3({"q_proj", "down_proj"}))})
    for (bool quantised : {false, true}) check_joined_on_gpu(config, quantised, "llama");
}

TEST_CASE("cuda: every family's block can be joined, BF16") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  for (const std::string& family : kFamilies)
    for (const LoraConfig& config : {tiny_lora(), rank8({"all-linear"}), with_dropout(tiny_lora()),
                                     with_dora(rank8({"all-linear"}))})
      for (bool quantised : {false, true})
        if (!quantised || family != "gpt2") check_joined_on_gpu(config, quantised, family);
}

TEST_CASE("cuda: recorded steps give the bits of steps launched one by one") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  auto train = [](const LoraConfig& lora, bool quantised, bool record, std::int64_t& recorded) {
    JoinedSubject s(DType::BF16, lora, false, open_device("auto"), quantised);
    TrainerConfig config;
    config.schedule = {ScheduleKind::Cosine, 1e-2, 2, 8};
    config.record = record;
    s.adapter->lay_out_for_training();
    Trainer trainer(*s.model, *s.adapter, config);
    std::vector<std::vector<float>> out(1);
    for (unsigned i = 0; i < 8; ++i) {  // other tokens each step, one step of another shape
      const std::vector<Row> rows =
          random_rows(i == 5 ? std::vector{40} : std::vector{9, 70, 3}, i);
      const std::vector<const Row*> all = pointers(rows);
      StepReport r = trainer.step(std::vector<std::vector<const Row*>>{all, all});
      recorded += r.recorded;
      out[0].push_back(static_cast<float>(r.loss));
      out[0].push_back(static_cast<float>(r.grad_norm));
      CHECK(s.backend->weight_gradient_matmuls() == 2 * s.adapter->weight_gradients() * (i + 1));
    }
    for (const Parameter* p : s.adapter->parameters()) out.push_back(to_host<float>(p->value()));
    return out;
  };
  // With dropout each step has masks of its own, recorded or not.
  for (const LoraConfig& lora : {tiny_lora(), with_dropout(tiny_lora()),
                                 with_dropout(rank8({"all-linear"})), with_dora(tiny_lora())}) {
    for (bool quantised : {false, true}) {
      std::int64_t with = 0, without = 0;
      CHECK(train(lora, quantised, true, with) == train(lora, quantised, false, without));
      CHECK(with == 6);  // all but the first, and the one of another shape
      CHECK(without == 0);
    }
  }
}

// Rows of other lengths each step, packed or not: few sizes, so nearly all steps are recorded, in
// the same memory; an evaluation between them uses it too.
TEST_CASE("cuda: recordings of several padded sizes give the bits of launched steps") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  constexpr int kSteps = 24;
  auto train = [](bool record, std::int64_t& recorded, std::int64_t& reserved) {
    JoinedSubject s(DType::BF16, tiny_lora(), false, open_device("auto"));
    TrainerConfig config;
    config.schedule = {ScheduleKind::Cosine, 1e-2, 2, kSteps};
    config.record = record;
    s.adapter->lay_out_for_training();
    Trainer trainer(*s.model, *s.adapter, config);
    std::vector<std::vector<float>> out(1);
    std::mt19937 rng(3);
    const std::vector<Row> held_out = random_rows({50, 200}, 77);
    for (unsigned i = 0; i < kSteps; ++i) {
      std::vector<int> lengths;
      for (int n = 0; n < (i % 5 == 4 ? 40 : 9); ++n)
        lengths.push_back(30 + static_cast<int>(rng() % 10));
      const std::vector<Row> rows = random_rows(lengths, i);
      StepReport r = trainer.step({{pointers(rows, 0, 4), pointers(rows, 4)}});
      recorded += r.recorded;
      out[0].push_back(static_cast<float>(r.loss));
      out[0].push_back(static_cast<float>(r.grad_norm));
      if (i == 8) reserved = s.backend->cache().reserved_bytes();
      if (i % 7 == 0)
        trainer.between_steps([&] {
          const TokenBatch batch = make_batch(*s.backend, pointers(held_out));
          for (double x : to_host_f64(s.model->token_losses(batch)))
            out[0].push_back(static_cast<float>(x));
        });
    }
    for (const Parameter* p : s.adapter->parameters()) out.push_back(to_host<float>(p->value()));
    return out;
  };
  std::int64_t with = 0, without = 0, reserved_with = 0, reserved_without = 0;
  CHECK(train(true, with, reserved_with) == train(false, without, reserved_without));
  CHECK(with > kSteps / 2);
  CHECK(without == 0);
  CHECK(reserved_with < reserved_without * 3 / 2);  // not a step's memory for each size
}

TEST_CASE("cuda: padded batches give the losses and gradients of plain ones, BF16") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  const std::vector<Row> rows = random_rows({9, 70, 3, 14, 33, 2, 61}, 4);
  auto train = [&](bool pad, DType dtype) {
    JoinedSubject s(dtype, tiny_lora(), false, open_device("auto"));
    TrainerConfig config;
    config.schedule.lr = 0;
    config.pad = pad;
    s.adapter->lay_out_for_training();
    Trainer trainer(*s.model, *s.adapter, config);
    std::vector<double> out{trainer.step({{pointers(rows, 0, 4), pointers(rows, 4, 7)}}).loss};
    for (const Parameter* p : s.adapter->parameters())
      for (double g : to_host_f64(p->grad())) out.push_back(g);
    return out;
  };
  for (auto [dtype, bound] : {std::pair{DType::F32, 1e-5}, {DType::BF16, 2e-2}}) {
    const std::vector<double> plain = train(false, dtype), padded = train(true, dtype);
    double difference = 0, size = 0;
    for (std::size_t i = 1; i < plain.size(); ++i) {
      difference += std::pow(padded[i] - plain[i], 2);
      size += std::pow(plain[i], 2);
    }
    CHECK(std::abs(padded[0] - plain[0]) < bound * plain[0]);
    CHECK_MESSAGE(std::sqrt(difference / size) < bound, dtype_name(dtype), ": ",
                  std::sqrt(difference / size));
  }
}
